"""Tables and figures of finished cells."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from benchmarks.accuracy import cells, standings
from benchmarks.accuracy.cells import Cell
from benchmarks.commands import main
from benchmarks.methods.registry import METHODS

TASK = "folded_gaussian"


@pytest.mark.parametrize("name", ["rf", "mlp"])
def test_one_fold_stands_in_for_all(name):
    of_all = finished_cells()
    of_some = of_all.copy()
    measured = of_all[f"c2st_{name}"].notna() & (of_all.index % 2 == 0)
    of_some.loc[measured, f"c2st_{name}_fold"] = of_all[f"c2st_{name}"][measured]
    of_some.loc[measured, f"c2st_{name}"] = float("nan")
    assert measured.any()
    assert standings.report(of_some) == standings.report(of_all)


def finished_cells():
    """Two seeds, two observations; NPE is worse on one seed; a single MLP value."""
    rows = [
        {
            **Cell(task, method, 1000, seed, observation)._asdict(),
            "c2st_rf": 0.6 + 0.1 * seed + (0.02 if observation == 2 else 0),
            "nll": -1.0 - seed,
            "commit": "abc",
            "measured_with": "a machine",
        }
        for task in ("two_moons", TASK)
        for method in ("npe_nsf", "jnpe_flow")
        for seed in (0, 1)
        for observation in (1, 2)
    ]
    frame = pd.DataFrame(rows, columns=list(cells.COLUMNS))
    frame.loc[0, "c2st_mlp"] = 0.75
    return frame


def test_tables_hold_means_spreads_and_numbers():
    text = standings.report(finished_cells())
    header, _, moons, folded = [
        line for line in text.split("random forest")[1].splitlines() if line[:1] == "|"
    ][:4]
    assert header.startswith("| task | npe_nsf | jnpe_flow | bar |")
    # seeds' means are 0.61 and 0.71, those of observations 0.65 and 0.67
    assert moons.count("0.660 ± 0.071 (2×2; 0.014)") == 2
    assert "| 0.580 | 0.698 (NPE; RF z-scored) | 0.655 (NPE_hparam_sweep; " in moons
    assert "| 0.543 (AUNLE; as in source) |" in moons
    assert folded.endswith("(2×2; 0.014) |  |  |  |  |")
    assert "| two_moons | 0.750 (1×1) |  | 0.698 " in text  # the bar is the forest's
    assert "| two_moons | -1.500 ± 0.707 | -1.500 ± 0.707 |" in text
    assert "a machine" in text


def test_report_command_writes_tables_and_figures(tmp_path, capsys):
    finished_cells().to_csv(tmp_path / "cells.csv", index=False)
    output = tmp_path / "somewhere" / "table.md"
    paths = ["--cells", str(tmp_path / "cells.csv"), "--output", str(output)]
    main(["report", *paths])
    assert "![two_moons](table/two_moons.png)" in output.read_text()
    assert (output.with_suffix("") / "two_moons.png").stat().st_size > 1000
    assert "0.660 ± 0.071" in capsys.readouterr().out


def test_methods_have_looks_of_their_own():
    methods = list(METHODS)
    rows = [
        {**finished_cells().iloc[0], "task": task, "method": method}
        for task in ("two_moons", TASK)
        for method in methods
    ]
    drawn = []
    for _, figure in standings.figures(pd.DataFrame(rows, columns=list(cells.COLUMNS))):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        points = [h for h, name in zip(handles, labels, strict=True) if name in methods]
        looks = [
            (to_hex(point.get_facecolor()[0]), len(point.get_paths()[0].vertices))
            for point in points
        ]
        drawn.append(looks)
    assert len(set(drawn[0])) == len(methods)
    assert drawn[0] == drawn[1]


def test_report_without_cells_says_so(tmp_path):
    with pytest.raises(SystemExit, match="No finished cells"):
        main(["report", "--cells", str(tmp_path / "none.csv")])
