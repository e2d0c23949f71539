"""Which of a run's processes this is, read from the environment that launchers set; known before torch is loaded."""

from __future__ import annotations

import os
import sys

RUN_DIR = "GRAFTWORK_RUN_DIR"
"""Set by the first process for those that it starts: the folder of the run."""

# what tells a process its number, by launcher: torchrun and Lightning, SLURM, several machines
_NUMBERS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK")


def is_first_process() -> bool:
    """Whether this process is the only one, or the one that writes for all."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in _NUMBERS)


def started_elsewhere() -> bool:
    """Whether torchrun or SLURM started several processes at once, so that none can tell the others anything yet."""
    torchrun = "RANK" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ
    slurm = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return (torchrun and int(os.environ.get("WORLD_SIZE", "1")) > 1) or slurm


def shared_stamp() -> str:
    """A name that all processes of one launch know; empty where the launcher gave none."""
    if "SLURM_JOB_ID" in os.environ:
        return f"slurm-{os.environ['SLURM_JOB_ID']}"
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if launch == "none" else f"torchrun-{launch}"


def leave_group() -> None:
    """Take this process out of the group of a finished run, if it is in one.

    A thread of the group may still hold the last tensor that was sent. Were it let go while the interpreter shuts down,
    the process would abort, and the launcher would take the whole run for a failure.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
