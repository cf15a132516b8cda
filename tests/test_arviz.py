"""What is taken from arviz, with both of the containers that users get."""

import warnings
from statistics import NormalDist

import numpy as np
import pytest
import xarray

from sbi_jeffreys import _arviz as api

RNG = np.random.default_rng(0)


def open_again(data, path, container):
    data.to_netcdf(path)
    if container == "DataTree":
        return xarray.open_datatree(path, engine="h5netcdf")
    return api.load_arviz().from_netcdf(str(path))


@pytest.mark.parametrize("version", ["0.23.4", "1.0.0", "1.3.0", "2.0"])
def test_the_installed_version_decides(monkeypatch, version):
    """And not what arviz has: from 1.1 on it answers to every name."""
    from arviz_base import from_dict

    monkeypatch.setattr(api, "version", lambda package: version)
    monkeypatch.setattr(api, "release", api.release.__wrapped__)
    made = []

    class Module:
        InferenceData = staticmethod(lambda attrs, **groups: made.append(groups))

    monkeypatch.setattr(api, "load_arviz", Module)
    data = api.inference_data({"posterior": {"a": np.zeros((2, 5))}})
    if version.startswith("0"):
        assert [list(groups) for groups in made] == [["posterior"]]
    else:
        assert made == []
        assert type(data) is type(from_dict({"posterior": {"a": np.zeros((2, 5))}}))


def test_importing_arviz_is_silent_and_leaves_other_warnings_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        api.load_arviz()
        assert warnings.filters == before


def test_the_density_is_that_of_the_draws():
    """Quantiles of a standard normal distribution as draws."""
    draws = np.array([NormalDist().inv_cdf((i + 0.5) / 4000) for i in range(4000)])
    grid, density = api.kde(draws)
    assert (grid[0], grid[-1]) == pytest.approx((draws[0], draws[-1]), abs=0.01)
    expected = [NormalDist().pdf(point) for point in grid]
    np.testing.assert_allclose(density, expected, atol=0.01)


def test_numbers_that_are_not_uniform_stand_out():
    """Of 400 uniform samples, 5 % fail: 20, and fewer than 4 or more than 40 in one run
    of 10,000. Ends that hold too much always fail, and there."""
    rng = np.random.default_rng(3)
    fail = sum(api.non_uniform(sample, 0.05).any() for sample in rng.random((400, 200)))
    uneven = rng.beta(0.5, 0.5, 500)
    found = api.non_uniform(uneven, 0.05)
    if api.release("arviz-stats") < (1, 1):
        assert fail == found.sum() == 0
    else:
        assert 4 <= fail <= 40
        middle = abs(uneven - 0.5) < 0.1
        assert found.sum() > 20
        assert found[~middle].mean() > found[middle].mean()


def make_data():
    posterior = {"a": RNG.normal(size=(4, 10)), "b": RNG.normal(size=(4, 10, 2))}
    groups = {
        "posterior": posterior,
        "sample_stats": {"lp": RNG.normal(size=(4, 10)), "bad": RNG.random((4, 10)) > 1},
        "prior": {"a": RNG.normal(size=(1, 7)), "b": RNG.normal(size=(1, 7, 2))},
        "posterior_predictive": {"x": RNG.normal(size=(4, 5, 3))},
        "prior_predictive": {"x": RNG.normal(size=(1, 7, 3))},
        "observed_data": {"x": RNG.normal(size=3)},
    }
    coords = {"axis": ["left", "right"], "time": [0.0, 0.5, 1.0]}
    dims = {"b": ["axis"], "x": ["time"]}
    attrs = {
        "/": {
            "method": "FlowPosterior",
            "seed": np.int64(3),
            "none": None,
            "log_z": np.float32(0.5),
            "fine": True,
            "levels": [1, 2],
        },
        "sample_stats": {"lp_is_normalised": True},
    }
    return api.inference_data(groups, coords, dims, attrs), groups


def check_data(data, groups):
    for name, variables in groups.items():
        for variable, values in variables.items():
            np.testing.assert_array_equal(data[name][variable].values, values)
            expected = {"b": ["axis"], "x": ["time"]}.get(variable, [])
            leading = [] if name == "observed_data" else ["chain", "draw"]
            assert list(data[name][variable].dims) == leading + expected
    assert list(data["posterior"]["axis"].values) == ["left", "right"]
    assert list(data["observed_data"]["time"].values) == [0.0, 0.5, 1.0]
    attrs = dict(data.attrs)
    assert attrs["method"] == "FlowPosterior"
    assert (attrs["seed"], attrs["log_z"], attrs["fine"]) == (3, 0.5, 1)
    assert attrs["levels"] == "[1, 2]"
    assert "none" not in attrs
    assert data["sample_stats"].attrs["lp_is_normalised"] == 1
    assert "created_at" in data["posterior"].attrs


def test_groups_variables_and_attributes_survive_netcdf(container, tmp_path):
    data, groups = make_data()
    assert type(data).__name__ == container
    check_data(data, groups)
    check_data(open_again(data, tmp_path / "data.nc", container), groups)


def test_dimensions_have_default_names(container):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that there are more chains than draws
        data = api.inference_data({"posterior": {"theta": np.zeros((6, 5, 3))}})
    assert data["posterior"]["theta"].dims == ("chain", "draw", "theta_dim_0")


def test_the_summary_of_known_draws():
    """Quantiles of a standard normal distribution as draws: the narrowest interval with
    probability 0.9 ends at ±1.645."""
    grid = [NormalDist().inv_cdf((i + 0.5) / 8000) for i in range(8000)]
    draws = np.random.default_rng(4).permutation(grid).reshape(4, 2000, 1)
    result = api.summary(np.concatenate([draws, 5 + 2 * draws], -1), hdi_prob=0.9)
    np.testing.assert_allclose(result.mean, [0, 5], atol=1e-6)
    np.testing.assert_allclose(result.sd, [1, 2], rtol=1e-3)
    np.testing.assert_allclose(result.hdi_low, [-1.645, 5 - 3.29], atol=0.06)
    np.testing.assert_allclose(result.hdi_high, [1.645, 5 + 3.29], atol=0.06)
    assert (result.ess_bulk > 6000).all()
    assert (abs(result.r_hat - 1) < 0.01).all()
    wider = api.summary(draws, hdi_prob=0.99)
    assert wider.hdi_high - wider.hdi_low > 5


def test_chains_that_disagree_and_chains_that_do_not_move_show():
    rng = np.random.default_rng(5)
    steps = rng.normal(size=(4, 1000, 1)).cumsum(1)
    apart = rng.normal(size=(4, 1000, 1)) + 5 * np.arange(4)[:, None, None]
    assert api.summary(apart).r_hat > 2
    assert api.summary(steps).ess_bulk < 100


def test_few_draws_or_chains_have_no_diagnostics():
    short = api.summary(RNG.normal(size=(4, 3, 2)))
    assert np.isnan(short.r_hat).all()
    assert np.isnan(short.ess_bulk).all()
    single = api.summary(RNG.normal(size=(1, 100, 2)))
    assert np.isnan(single.r_hat).all()
    assert (single.ess_bulk > 10).all()
    constant = api.summary(np.ones((4, 100, 1)))
    assert (constant.mean, constant.sd) == (1, 0)


def test_what_is_not_a_set_of_draws_is_refused():
    with pytest.raises(ValueError, match=r"`draws` of shape .* got \(4, 10\)"):
        api.summary(np.zeros((4, 10)))
    for prob in (0, 1, 94):
        with pytest.raises(ValueError, match=f"`hdi_prob` .* got {prob}"):
            api.summary(np.zeros((4, 10, 1)), prob)


def test_draws_have_labels(container):
    data, groups = make_data()
    labels, draws = api.labelled_draws(data)
    assert labels == ["a", "b[left]", "b[right]"]
    np.testing.assert_array_equal(draws[..., 0], groups["posterior"]["a"])
    np.testing.assert_array_equal(draws[..., 1:], groups["posterior"]["b"])
    assert api.labelled_draws(data, ["b", "a"])[0] == ["b[left]", "b[right]", "a"]
    matrix = np.arange(12.0).reshape(1, 2, 2, 3)
    labels, draws = api.labelled_draws(api.inference_data({"posterior": {"m": matrix}}))
    assert labels[:4] == ["m[0, 0]", "m[0, 1]", "m[0, 2]", "m[1, 0]"]
    np.testing.assert_array_equal(draws, matrix.reshape(1, 2, 6))
    with pytest.raises(ValueError, match=r"group 'posterior', got \['prior'\]"):
        api.labelled_draws(api.inference_data({"prior": {"a": np.zeros((1, 5))}}))


def test_only_inference_data_is_taken_for_it(container):
    assert api.is_inference_data(make_data()[0])
    for other in ({"posterior": {}}, np.zeros(3), None):
        assert not api.is_inference_data(other)
