"""Published C2ST values on sbibm's tasks, with their sources.

They are in `published_c2st.csv`. Each line names its source and its classifier:

- `lueckmann2021_main_paper`: Lueckmann et al. 2021, arXiv:2101.04653, its repository.
  `gaussian_mixture_rerun_sbibm1.1` is from there, too, after a task was corrected.
- `npe-pfn repo summary.csv`, `npe-pfn2025_fig_sweep`: NPE-PFN, arXiv:2504.17660.
- `simformer2024_...`: Simformer, arXiv:2404.09636.
- `glaser2022_unle_...`: AUNLE and SUNLE, arXiv:2210.14756.
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

PLAIN_NPE = "NPE"
FLOW_NPE = ("NPE", "NPE-ensemble(5)", "NPE_hparam_sweep")
SEQUENTIAL = ("SNPE", "SNLE", "SNRE", "SUNLE", "SMC-ABC")
RANDOM_FOREST = "RF z-scored"

BARS = {
    "two_moons": 0.58,
    "slcp": 0.93,
    "gaussian_linear": 0.58,
    "gaussian_linear_uniform": 0.60,
    "gaussian_mixture": 0.565,
    "bernoulli_glm": 0.77,
    "bernoulli_glm_raw": 0.85,
    "sir": 0.65,
    "lotka_volterra": 0.985,
    "slcp_distractors": 0.970,
}
"""C2ST that JNPE is to reach with 1,000 simulations, by the random forest."""


class Published(NamedTuple):
    """A published mean over observations.

    Attributes:
        c2st: Accuracy of the classifier.
        method: Name of the method.
        classifier: Name of the classifier.
        source: Source, as in the file.
    """

    c2st: float
    method: str
    classifier: str
    source: str


def published() -> pd.DataFrame:
    """Return all published values, one a row."""
    return pd.read_csv(Path(__file__).with_name("published_c2st.csv"))


def plain_npe(task: str, num_simulations: int) -> Published | None:
    """Return the value of NPE with a spline flow, by the random forest."""
    rows = published().query("method == @PLAIN_NPE and classifier == @RANDOM_FOREST")
    return _best(rows, task, num_simulations)


def best_flow(task: str, num_simulations: int) -> Published | None:
    """Return the lowest value of any NPE: plain, ensemble or tuned."""
    return _best(published().query("method in @FLOW_NPE"), task, num_simulations)


def best_amortized(task: str, num_simulations: int) -> Published | None:
    """Return the lowest value of a method that does not simulate again for each x_o."""
    rows = published().query("method not in @SEQUENTIAL")
    return _best(rows, task, num_simulations)


def _best(rows: pd.DataFrame, task: str, num_simulations: int) -> Published | None:
    rows = rows[(rows.task == task) & (rows.num_simulations == num_simulations)]
    if rows.empty:
        return None
    best = rows.loc[rows.c2st_mean.idxmin()]
    return Published(best.c2st_mean, best.method, best.classifier, best.source)
