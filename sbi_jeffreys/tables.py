"""Tables in print and in notebooks, both from the same cells."""

from html import escape
from typing import Any

import numpy as np
import pandas as pd


def digits(value: Any) -> str:
    """Return a number with three significant digits, "-" for NaN, and all else as is."""
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value):
        return "-"
    return f"{value:.0f}" if 1000 <= abs(value) < np.inf else f"{value:.3g}"


def as_text(*parts: pd.DataFrame | str) -> str:
    """Return lines and tables as text. Verdicts begin at one edge."""
    return "\n\n".join(
        part if isinstance(part, str) else _aligned(part.map(digits)) for part in parts
    )


def as_html(*parts: pd.DataFrame | str) -> str:
    """Return lines and tables as HTML, for notebooks."""
    return "\n".join(
        f"<p>{escape(part)}</p>"
        if isinstance(part, str)
        else part.map(digits).to_html(index=False, border=0)
        for part in parts
    )


def _aligned(cells: pd.DataFrame) -> str:
    if "verdict" in cells:
        width = 1 + int(cells["verdict"].str.len().max())
        padded = cells["verdict"].radd(" ").str.ljust(width)
        cells = cells.assign(verdict=padded)
        cells = cells.rename(columns={"verdict": " verdict".ljust(width)})
    lines = cells.to_string(index=False).splitlines()
    return "\n".join(line.rstrip() for line in lines)
