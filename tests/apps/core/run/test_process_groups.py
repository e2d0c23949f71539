"""How a process leaves the group that it computed with."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from apps.core.cli import main as entry
from apps.segmentation.config import TASK


@pytest.mark.parametrize(("code", "left"), [(0, True), (2, False)])
def test_a_run_that_went_well_leaves_its_group_before_it_ends(tmp_path, monkeypatch, code, left):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    monkeypatch.setattr(entry, "main", lambda task: code)
    try:
        with pytest.raises(SystemExit) as ended:
            entry.run(TASK)
        assert ended.value.code == code
        assert dist.is_initialized() is not left  # peers of a failed run may be waited for in vain
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_a_process_by_itself_just_ends(monkeypatch):
    monkeypatch.setattr(entry, "main", lambda task: 0)
    with pytest.raises(SystemExit) as ended:
        entry.run(TASK)
    assert ended.value.code == 0
