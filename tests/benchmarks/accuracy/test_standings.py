"""Tables and figures of finished cells."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from benchmarks.accuracy import cells, standings
from benchmarks.accuracy.cells import Cell
from benchmarks.commands import main

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
    finished = finished_cells()
    is_left_out = (finished.task == "two_moons") & (finished.method == "jnpe_flow")
    is_left_out &= finished.observation + 2 * finished.seed > 1
    text = standings.report(finished[~is_left_out])
    header, _, moons, folded = [
        line for line in text.split("random forest")[1].splitlines() if line[:1] == "|"
    ][:4]
    assert header.startswith("| task | npe_nsf | jnpe_flow | bar |")
    assert moons.count("| 0.660 ± 0.071 |") == 1  # seeds' means are 0.61 and 0.71
    assert moons.count("| 0.600 (1 × 1) |") == 1
    assert "Seeds × observations: 2 × 2, if no bracket says otherwise." in text
    assert "| 0.580 | 0.698 (NPE; RF z-scored) | 0.655 (NPE_hparam_sweep; " in moons
    assert "| 0.543 (AUNLE; as in source) |" in moons
    assert folded.endswith("| 0.660 ± 0.071 |  |  |  |  |")
    assert "| two_moons | 0.750 |  | 0.698 " in text  # the bar is the forest's
    assert "| two_moons | -1.500 ± 0.707 | -1.000 |" in text
    assert "a machine" in text


def test_report_command_writes_tables_and_figures(tmp_path, capsys):
    finished_cells().to_csv(tmp_path / "cells.csv", index=False)
    output = tmp_path / "somewhere" / "table.md"
    paths = ["--cells", str(tmp_path / "cells.csv"), "--output", str(output)]
    main(["report", *paths])
    assert "(table/c2st_1000.png)" in output.read_text()
    assert (output.with_suffix("") / "c2st_1000.png").stat().st_size > 1000
    assert "0.660 ± 0.071" in capsys.readouterr().out


def test_the_overview_has_a_point_for_each_seed_and_a_look_for_each_method():
    rows = [
        {**row._asdict(), "method": method}
        for row in finished_cells().itertuples(index=False)
        if row.method == "npe_nsf"
        for method in standings.LABELS
    ]
    (axes,) = standings.overview(pd.DataFrame(rows, columns=list(cells.COLUMNS))).axes
    points, labels = axes.get_legend_handles_labels()
    assert labels == list(standings.LABELS.values())
    assert len({to_hex(point.get_facecolor()[0]) for point in points}) == len(labels)
    for point in points:
        places, scores = point.get_offsets().T
        assert sorted(places.round()) == [0, 0, 1, 1]
        assert scores.tolist() == pytest.approx([0.61, 0.71, 0.61, 0.71])


def test_report_without_cells_says_so(tmp_path):
    with pytest.raises(SystemExit, match="No finished cells"):
        main(["report", "--cells", str(tmp_path / "none.csv")])
