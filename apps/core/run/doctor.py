"""The verb ``doctor``: is this machine ready, is the data sound, what will an epoch take."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from apps.core.inference.load import choose_device
from apps.core.report.numbers import duration, latency, number, size
from apps.core.report.table import print_table
from apps.core.run.estimate import Estimate, available_memory, estimate
from apps.core.run.machine import machine
from apps.core.task import Task, VerbOptions
from backbones.attention import dispatch
from datamodules.findings import Finding
from graftwork.errors import UserError

EXTRAS = {
    "export": (("onnx", "onnxscript", "onnxruntime"), "export --format onnx"),
    "sample": (("autots", "skimage", "sklearn"), "real data to try the apps with, no download"),
    "natten": (("natten",), "neighborhood attention on CUDA"),
    "vision": (
        ("timm", "torchvision", "imagecodecs", "tifffile"),
        "vision backbones, image transforms, images of 16 bits",
    ),
    "speech": (("torchaudio", "soundfile", "jiwer", "sentencepiece"), "audio files, features, word error rate"),
    "rl": (("gymnasium",), "reinforcement-learning environments"),
    "mmseg": (("mmseg", "mmengine", "mmcv"), "heads, datasets and metrics of mmsegmentation"),
}
LEVELS = ("error", "warning", "ok")
NEEDED_DISK = 2 * 2**30
ROOM = 0.9  # a training that fills the last tenth of the memory does not end well


def doctor(task: Task, config: Any, options: VerbOptions) -> int:
    """Check machine, attention, extras, data and cost, and print what was found.

    Args:
        task: The app.
        config: Its resolved configuration.
        options: Not used.

    Returns:
        0, or 1 where something will fail.
    """
    console = Console()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    found, device = _device(config)
    print_table(machine_rows(device), "machine", console, words=True)
    console.print()
    print_table(attention_rows(device), f"attention on {device.type}", console, words=True)
    console.print()
    print_table(extra_rows(), "optional packages", console, words=True)
    console.print()
    found += [*disk_findings(Path(config.run.dir or config.run.root))]
    found += data_findings(task, config, device, console)
    console.print("\n".join(["findings", *finding_lines(found)]), markup=False, highlight=False, soft_wrap=True)
    return int(any(finding.level == "error" for finding in found))


def machine_rows(device: torch.device) -> list[list[str]]:
    """The machine as rows of text, a header first."""
    return [["what", "value"], *([name.replace("_", " "), str(value)] for name, value in machine(device).items())]


def attention_rows(device: torch.device) -> list[list[str]]:
    """Attention backends: what they serve here, and why not."""
    rows = [["backend", "usable for", "why not"]]
    for row in dispatch.explain(str(device) if device.type in ("cpu", "cuda") else "cpu"):
        rows.append([row.backend, ", ".join(row.dtypes) or "-", row.reason or "-"])
    return rows


def extra_rows() -> list[list[str]]:
    """Extras: installed or not, and what they would give."""
    rows = [["extra", "state", "gives"]]
    for extra, (packages, gives) in EXTRAS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        state = f"missing {', '.join(missing)}: pip install 'graftwork[{extra}]'" if missing else "installed"
        rows.append([extra, state, gives])
    return rows


def disk_findings(folder: Path) -> list[Finding]:
    """Whether there is room for a run where runs live."""
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < NEEDED_DISK:
        return [Finding("warning", f"{size(free)} free in {place}", "Free some space, or choose --run.root")]
    return [Finding("ok", f"{size(free)} free in {place}")]


def data_findings(task: Task, config: Any, device: torch.device, console: Console) -> list[Finding]:
    """What the data says of itself and, if it is sound, what an epoch on it will take."""
    found: list[Finding] = []
    try:
        datamodule = config.data.build(seed=config.seed)
        found += datamodule.inspect()
        if any(finding.level == "error" for finding in found):
            return found
        datamodule.setup()
        module = task.module_class()(config, datamodule.info).to(device)
        cost = estimate(module, datamodule)
    except UserError as error:
        what = error.what if not error.where else f"{error.where}: {error.what}"
        return [*found, Finding("error", what, error.mend)]
    except torch.OutOfMemoryError:
        return [*found, Finding("error", f"a training step does not fit into the memory of {device}", _SMALLER)]
    print_table(estimate_rows(cost, config.trainer.max_epochs), "estimate", console)
    console.print()
    return [*found, *cost_findings(cost, available_memory(device))]


_SMALLER = "Try a smaller --data.batch_size, with --trainer.accumulate_grad_batches to make up for it"


def cost_findings(cost: Estimate, memory: int) -> list[Finding]:
    """Whether the training fits, and whether it will wait for its data."""
    needs = f"training needs about {size(cost.memory_bytes)} of tensors"
    if memory and cost.memory_bytes > ROOM * memory:
        found = [Finding("error", f"{needs}, {size(memory)} are free", _SMALLER)]
    else:
        found = [Finding("ok", f"{needs}{f', {size(memory)} are free' if memory else ''}")]
    if cost.waits_for_data:
        more = f"Try --data.num_workers {max(2, 2 * cost.workers)}"
        found.append(Finding("warning", "loading takes more than half of the time of an epoch", more))
    return found


def estimate_rows(cost: Estimate, epochs: int) -> list[list[str]]:
    """The estimate as rows of text, a header first."""
    rows = [
        ["what", "value"],
        ["parameters", number(cost.parameters)],
        ["load a batch", latency(cost.load_s)],
        ["training step", latency(cost.step_s)],
        ["training batches", number(cost.steps)],
        ["validation batches", number(cost.evals)],
        ["one epoch, about", duration(cost.epoch_s)],
    ]
    if epochs > 0:
        rows.append([f"{epochs} epochs, about", duration(epochs * cost.epoch_s)])
    rows.append(["weights, gradients, optimiser", size(cost.state_bytes)])
    rows.append(["peak of a step on top", size(cost.step_bytes)])
    return rows


def finding_lines(found: Sequence[Finding]) -> list[str]:
    """Findings as lines of text, errors first; what to do about one stands below it."""
    ranked = sorted(found, key=lambda finding: LEVELS.index(finding.level))
    lines = []
    for finding in ranked:
        text = [line for part in (finding.what, finding.mend) for line in part.splitlines()]
        lines += [f"{finding.level:<8} {text[0]}", *(f"{'':<8} {line}" for line in text[1:])]
    return lines


def _device(config: Any) -> tuple[list[Finding], torch.device]:
    try:
        return [], choose_device(config.trainer.accelerator)
    except UserError as error:
        return [Finding("error", error.what, "Set --trainer.accelerator auto or cpu")], torch.device("cpu")
