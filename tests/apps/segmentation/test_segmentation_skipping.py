"""Corrupt files in a whole run: left out of evaluation, and listed as often as they were met, also after a break."""

from __future__ import annotations

import json
from pathlib import Path

from datamodules.segmentation.config import GeneratedConfig
from tests.apps.segmentation.runs import results, run


def test_a_resumed_run_lists_what_evaluation_goes_without_once(tmp_path: Path) -> None:
    data = {"data.root": str(tmp_path / "data"), "data.on_corrupt": "skip", "data.images": 8}
    GeneratedConfig(root=str(tmp_path / "data"), images=8).find()
    (victim, *others) = sorted((tmp_path / "data").rglob("images/test/*.png"))
    assert others
    victim.write_bytes(victim.read_bytes()[:-100])
    for epochs, resume in ((1, False), (2, True)):
        assert run(tmp_path / "run", resume=resume, **data, **{"trainer.max_epochs": epochs}) == 0
        assert json.loads((tmp_path / "run/notes.json").read_text())["skipped files"] == {str(victim): 1}
    assert results(tmp_path / "run")["miou"]["samples"] == len(others)
