"""Growth of memory, and rows as files."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from backbones.comparison import compare, grow, growth_exponent
from backbones.tables import print_table, write_rows
from graftwork.errors import UserError


def test_quadratic_growth_is_told_from_linear():
    assert growth_exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert growth_exponent([1, 2, 4], [5, 20, 80]) == pytest.approx(2)


def test_memory_is_that_of_the_call():
    memory = grow("pairs", [64, 128, 256], lambda length: lambda: torch.ones(length, length).sum())
    assert memory.bytes[-1] >= 256 * 256 * 4 and memory.exponent == pytest.approx(2, abs=0.01)


def test_both_forms_are_called_in_turns():
    seen: list[str] = []
    speed = compare("none", seen.append, repeats=3)
    assert seen == ["auto", "math"] * 4
    assert speed.ratio_min <= speed.ratio <= speed.ratio_max


def test_rows_are_written_as_csv_and_json(tmp_path):
    rows = [{"name": "a", "channels": [1, 2]}, {"name": "b", "channels": [3]}]
    write_rows(rows, tmp_path / "rows.csv")
    write_rows(rows, tmp_path / "rows.json", {"torch": "2"})
    with (tmp_path / "rows.csv").open() as stream:
        assert list(csv.DictReader(stream)) == [{"name": "a", "channels": "1 2"}, {"name": "b", "channels": "3"}]
    assert json.loads((tmp_path / "rows.json").read_text()) == {"torch": "2", "rows": rows}
    write_rows(rows, None)
    with pytest.raises(UserError, match=r"rows.txt: expected a name that ends in .csv or .json"):
        write_rows(rows, tmp_path / "rows.txt")
    with pytest.raises(UserError, match="cannot be written: No such file"):
        write_rows(rows, tmp_path / "nowhere" / "rows.csv")


def test_text_in_brackets_is_no_markup(capsys):
    print_table(("a",), [("[red]x",)], "title")
    assert "[red]x" in capsys.readouterr().out
