"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from apps.core.run.provenance import cpu_name, versions


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, threads, memory, device and versions, as plain values."""
    facts: dict[str, Any] = {
        "device": str(device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(total_memory() / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **versions(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return facts


def total_memory() -> int:
    """Bytes of main memory, or of what this container may use of it; 0 where the system does not tell."""
    found = []
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError, AttributeError):
        pass  # not on this system, or no limit
    return min(found, default=0)


def free_memory() -> int:
    """Bytes of main memory that can still be taken; 0 where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, total_memory())
    except (OSError, ValueError):
        pass
    return total_memory()
