from __future__ import annotations

from apps.core.report.curves import charts
from apps.core.report.markup import MOST_ROWS, code, fold, pairs, section, table


def test_durations_are_told_from_other_numbers():
    shown = pairs({"fit_s": 185.0, "training_s_per_epoch": 0.5, "samples_per_s": 12.0, "seed": 2023, "gpus": []})
    cells = ["fit", "3 min 05 s", "training per epoch", "500 ms", "samples per s", "12.00", "seed", "2023"]
    assert [cell for cell in cells if f"<td>{cell}</td>" in shown] == cells and "gpus" not in shown


def test_nested_values_are_spelled_out():
    choice = {"backend": "sdpa", "passed_over": {"xformers": "no <gpu>"}, "wanted_by": ""}
    assert "<td>attend</td><td>backend sdpa, passed over.xformers no &lt;gpu&gt;</td>" in pairs({"attend": [choice]})
    assert "<td>git.commit</td>" in pairs({"git": {"commit": "abc"}})


def test_nothing_gives_nothing():
    assert section("a", "b", "") == fold("a", "") == code(" ") == table([]) == pairs({}) == ""


def test_long_tables_say_that_they_are_cut():
    shown = table([{"step": step} for step in range(MOST_ROWS + 3)])
    assert shown.count("<tr>") == MOST_ROWS + 1 and "3 further rows" in shown
    assert "<td>–</td>" in table([{"a": 1}, {"b": 2}])


def test_charts_keep_the_order_of_logging():
    logged = {name: [(0, 1.0), (1, 2.0)] for name in ("lr", "val/psnr", "val/acc", "train/aux", "train/loss")}
    titles = [chart.split("<b>")[1].split("</b>")[0] for chart in charts(logged)]
    assert titles == ["loss", "psnr", "acc", "aux", "learning rate"]
