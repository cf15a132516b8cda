"""What calls of both posteriors take and return, whatever they are sampled with."""

import pytest
import torch
from sbi.utils import get_density_thresholder

X = torch.tensor([[0.0, 0.2], [0.3, -0.1], [-0.2, 0.4]])
KINDS = ("direct", "energy")


@pytest.fixture(scope="module", params=KINDS)
def posterior(request, trained):
    return trained.build_posterior(sample_with=request.param)


@pytest.mark.parametrize("sample_with", [*KINDS, "rejection", "importance"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), [5], torch.Size((0,))])
def test_samples_have_the_shape_that_is_asked_for(trained, sample_with, shape):
    """That of sbi's base class, `(*sample_shape, D)`, of which sbi's own direct posterior
    makes one axis."""
    posterior = trained.build_posterior(sample_with=sample_with)
    if sample_with in KINDS or 0 not in shape:
        for x in (X[:1], X[0]):
            samples = posterior.sample(shape, x=x, show_progress_bars=False)
            assert samples.shape == (*shape, 2)
    if sample_with in KINDS:
        theta = posterior.sample_batched(shape, X)
        assert theta.shape == (*shape, 3, 2)
        if 0 not in shape:
            assert posterior.log_prob_batched(theta, X).shape == (*shape, 3)


def test_densities_and_modes_have_the_same_shapes(posterior):
    theta = torch.zeros(4, 2)
    assert posterior.log_prob(theta, x=X[:1]).shape == (4,)
    assert posterior.log_prob(theta[0], x=X[0]).shape == (1,)
    posterior.set_default_x(X[0])
    assert posterior.default_x.shape == (1, 2)
    mode = posterior.map(num_iter=3, num_init_samples=20)
    assert mode.shape == (1, 2)
    assert posterior.map() is mode


def test_the_mode_is_at_least_as_good_as_every_start(posterior):
    """sbi maps the best start out of the support where no step is better."""
    posterior.set_default_x(X[0])
    start = torch.tensor([[0.5, -0.5], [0.1, 0.2], [-0.9, 0.9]])
    mode = posterior.map(init_method=start, num_iter=0)
    best = posterior.potential(start).argmax()
    assert torch.equal(mode, start[best : best + 1])


def test_batched_densities_are_those_of_each(posterior):
    torch.manual_seed(0)
    theta = 1.6 * torch.rand(2, 4, 3, 2) - 0.8
    together = posterior.log_prob_batched(theta, X)
    for i in range(3):
        alone = posterior.log_prob(theta[:, :, i].reshape(8, 2), x=X[i])
        torch.testing.assert_close(
            together[..., i].reshape(8), alone, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("method", "arguments", "error", "message"),
    [
        ("sample", (10, X[:1]), TypeError, r"`sample_shape` .* \(1000,\) .* got 10"),
        ("sample_batched", (10, X), TypeError, r"`sample_shape` .* got 10"),
        ("sample", ((2.5,), X[:1]), TypeError, r"`sample_shape` .* got \(2.5,\)"),
        ("sample", ((-2,), X[:1]), ValueError, r"`sample_shape` .* got \(-2,\)"),
        ("sample", ((2,), X[:, :1]), RuntimeError, r"trailing dimensions \(2,\)"),
        ("sample", ((2,), X[None]), ValueError, r"`x` of .* got \(1, 3, 2\)"),
        ("sample", ((2,), X[:1] / 0), ValueError, "observation `x`"),
        ("set_default_x", (X[:, :1],), RuntimeError, r"trailing dimensions \(2,\)"),
        ("set_default_x", (X[:1] * torch.nan,), ValueError, "`x` without NaN, .* 1 of 1"),
        ("log_prob", (torch.zeros(4, 1), X[:1]), ValueError, r"`theta` of .*\(4, 1\)"),
        ("log_prob", (torch.zeros(4, 3), X[:1]), ValueError, r"`theta` of .*\(4, 3\)"),
        ("log_prob", (torch.zeros(4, 1, 2), X[:1]), ValueError, r"got \(4, 1, 2\)"),
        ("potential", (torch.zeros(4, 1), X[:1]), ValueError, r"`theta` of .*\(4, 1\)"),
        ("log_prob_batched", (torch.zeros(4, 2), X), ValueError, r"sample_shape, 3, D"),
        (
            "log_prob_batched",
            (torch.zeros(3, 1), X),
            ValueError,
            r"`theta` of .*\(3, 1\)",
        ),
        ("map", (X[:1],), ValueError, r"no `x`: set it by `.set_default_x"),
    ],
)
def test_bad_arguments_are_refused_by_name(posterior, method, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(posterior, method)(*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_default_x_it_is_asked_for(trained, kind):
    posterior = trained.build_posterior(sample_with=kind)
    theta = torch.zeros(4, 2)
    for call in (
        posterior.map,
        posterior.sample,
        posterior.agreement,
        lambda: posterior.log_prob(theta),
        lambda: posterior.potential(theta),
    ):
        with pytest.raises(ValueError, match="`x`, as the default has not been set"):
            call()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("proposal", "got 'proposal'"),
        (None, "got None"),
        (torch.zeros(2), r"\(N, D\), got \(2,\)"),
        (torch.full((3, 2), torch.nan), "but 3 of 3 have NaN"),
    ],
)
def test_what_a_mode_is_not_searched_from(posterior, start, message):
    posterior.set_default_x(X[0])
    mode = posterior.map(num_iter=1, num_init_samples=20)
    with pytest.raises(ValueError, match=f"`init_method`.*{message}"):
        posterior.map(init_method=start)
    with pytest.raises(ValueError, match=r"`theta` of shape \(N, 2\), got \(5, 3\)"):
        posterior.map(init_method=torch.zeros(5, 3), force_update=True)
    assert posterior.map() is mode


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_at_least_one_draw_at_a_time(trained, kind, size):
    posterior = trained.build_posterior(sample_with=kind)
    calls = [("sample", ((4,), X[:1])), ("sample_batched", ((4,), X))]
    if kind == "energy":
        calls.append(("sample", ((4,), X)))
    options = [{}, {"max_sampling_time": 60.0}] if kind == "direct" else [{}]
    for method, arguments in calls:
        for others in options:
            with pytest.raises(
                ValueError, match=rf"`max_sampling_batch_size` .* at least 1, got {size}"
            ):
                getattr(posterior, method)(
                    *arguments, max_sampling_batch_size=size, **others
                )


def test_no_progress_bar_is_shown_where_the_trainer_shows_none(posterior, capfd):
    """Also in functions of sbi, which have no argument for it."""
    posterior.set_default_x(X[:1])
    posterior.map(num_iter=2, num_init_samples=20, force_update=True)
    inside = get_density_thresholder(posterior, num_samples_to_estimate_support=50)
    inside(posterior.sample((3,)))
    posterior.sample_batched((3,), X)
    posterior.log_prob(torch.zeros(2, 2))
    assert capfd.readouterr() == ("", "")
    posterior.sample((3,), show_progress_bars=True)
    assert "Drawing 3 samples" in capfd.readouterr().err
    posterior.show_progress_bars = True
    posterior.map(num_iter=2, num_init_samples=20, force_update=True)
    assert capfd.readouterr() == ("", "")
    posterior.sample((3,))
    assert "Drawing 3 samples" in capfd.readouterr().err
    posterior.show_progress_bars = False


def test_the_density_given_several_x_takes_few_draws(trained, monkeypatch):
    """It tempers 2,000 particles, and not 10,000 as where draws are evaluated once."""
    posterior = trained.build_posterior(sample_with="energy")
    asked = []
    estimate = posterior.importance_weights
    monkeypatch.setattr(
        posterior,
        "importance_weights",
        lambda x, num, is_iid: asked.append((num, is_iid)) or estimate(x, num, is_iid),
    )
    theta = torch.zeros(5, 2)
    first = posterior.log_prob(theta, x=X)
    assert torch.equal(posterior.log_prob(theta, x=X), first)
    posterior.log_prob(theta, x=X[:1])
    assert asked == [(2_000, True), (10_000, False)]
    exact, error = posterior.log_evidence_ratio(X, 10_000, x_is_iid=True)
    rough, larger = posterior.log_evidence_ratio(X.flip(0), 2_000, x_is_iid=True)
    assert larger.item() < 0.1
    assert abs(exact - rough).item() < 6 * torch.hypot(error, larger).item()
