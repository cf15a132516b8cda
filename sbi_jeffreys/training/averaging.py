"""The moving average of weights over the steps of an optimiser."""


def newest_share(num_updates: int, past: float) -> float:
    r"""Return the share of the newest weights in their moving average.

    It is $\max(1 - \rho, 9 / (9 + n))$. Early averages thus cover about the last tenth
    of all steps, and later ones the last $1 / (1 - \rho)$ steps.

    Args:
        num_updates: Updates of the average so far, n.
        past: Share of the past in the long run, $\rho$.
    """
    return max(1 - past, 9 / (9 + num_updates))
