"""What progress bars say of the whole training."""

import re

import pytest
from tqdm.auto import tqdm

from sbi_jeffreys.progress import time_left
from tests.small_trainings import make_trainer


@pytest.fixture
def bar():
    """Three of ten epochs in six seconds; two of twelve were done by an earlier call."""
    with tqdm(total=12, initial=2) as result:
        result.n = 5
        result.start_t = result._time() - 6
        yield result


def test_the_pace_is_that_of_this_call(bar):
    (left,) = time_left(bar, later=23).values()
    assert left == tqdm.format_interval(2 * (7 + 23))


def test_nothing_is_said_where_the_bars_own_estimate_serves(bar):
    assert time_left(bar, later=0) == {}
    bar.n = 2
    assert time_left(bar, later=23) == {}
    with tqdm(total=12, disable=True) as hidden:
        assert time_left(hidden, later=23) == {}


@pytest.mark.parametrize("pool", [False, ("linear_model", "synthetic_likelihood")])
def test_a_training_says_when_all_of_it_is_done_and_names_its_parts(pool, capfd):
    """Without the pool the networks are all there is."""
    make_trainer(pool=pool, show_progress_bars=True).train(max_num_epochs=3)
    shown = capfd.readouterr().err
    parts = dict.fromkeys(re.findall(r"JNPE[^:\r\n]*(?=:)", shown))
    assert ("all done in" in shown) is bool(pool)
    if not pool:
        assert list(parts) == ["JNPE trains its networks"]
    else:
        assert list(parts) == [
            "JNPE trains its networks (1/3)",
            "JNPE fits its pool (2/3)",
            "JNPE's flow learns from its pool (2/3)",
            "JNPE weighs its pool (2/3)",
            "JNPE fits its pool to all simulations (2/3)",
            "JNPE's flow follows the energy (3/3)",
        ]
