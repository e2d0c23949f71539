"""Where a run comes from: command, code, packages, machine, seed, time."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import graftwork

PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy", "pandas", "xformers", "natten", "timm", "wandb")
LARGEST_DIFF = 200_000
_CHECKOUT = Path(graftwork.__file__).resolve().parents[1]


def provenance(task: str, name: str, argv: Sequence[str], seed: int, verb: str = "fit") -> dict[str, Any]:
    """Facts that let somebody repeat a run, as plain values.

    Args:
        task: Name of the task.
        name: Name of the run.
        argv: Words after ``python -m apps.<task>``.
        seed: Seed of the run.
        verb: What is being run.
    """
    words = list(argv) or [verb]
    return {
        "task": task,
        "name": name,
        "verb": verb,
        "argv": words,
        "command": shlex.join(["python", "-m", f"apps.{task}", *words]),
        "folder": str(Path.cwd()),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": seed,
        **git_state(),
        "graftwork": graftwork.__version__,
        "python": platform.python_version(),
        **versions(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "gpus": gpu_names(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, str]:
    """Commit, and the changes on top of it, of the checkout that the code runs from; empty outside of one."""
    commit = _git("rev-parse", "HEAD")
    if not (_CHECKOUT / ".git").exists() or commit is None:
        return {}
    diff = _git("diff", "HEAD") or ""
    if len(diff) > LARGEST_DIFF:
        diff = f"{diff[:LARGEST_DIFF]}\n... {len(diff) - LARGEST_DIFF} more characters\n"
    return {"commit": commit.strip(), "diff": diff} if diff else {"commit": commit.strip()}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_CHECKOUT), *words], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def cpu_name() -> str:
    """Model of the processor, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """Names of the CUDA devices; empty where torch is not loaded or finds none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
