"""The verb ``benchmark``: what the configured model costs here, with the attention core beside the plain formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from apps.core.inference.load import choose_device, load_module
from apps.core.report.numbers import latency, number, size
from apps.core.report.table import print_table
from apps.core.run.atomic import check_place, json_text, replace_file
from apps.core.run.machine import machine
from apps.core.run.workload import affordable, flops, forward_call, parameter_count, to_device, train_call
from apps.core.task import Task, VerbOptions
from backbones.attention import dispatch
from backbones.timing import measure, peak_memory, ratio

MATH = "math"


def benchmark(task: Task, config: Any, options: VerbOptions) -> int:
    """Measure the configured model on an example batch and print a table.

    Args:
        task: The app.
        config: Its resolved configuration.
        options: ``json`` names a file for the figures; ``weights`` may be left out.

    Returns:
        0.

    Raises:
        UserError: The data or the weights cannot be read, or the device is not there.
    """
    if options.json:
        check_place(Path(options.json), "--json")
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = choose_device(config.trainer.accelerator)
    module = load_module(task, config, options).module.to(device)
    batch_size = int(getattr(config.data, "batch_size", 32))
    figures = {"task": task.name, **names(config), "batch_size": batch_size}
    figures |= measured(module, to_device(module.example_batch(batch_size), device), batch_size, config.attention)
    figures["machine"] = machine(device)
    show(figures)
    if options.json:
        replace_file(Path(options.json), json_text(figures), "--json")
    return 0


def names(config: Any) -> dict[str, str]:
    """Names of the chosen model and data."""
    from apps.core.cli.schema import to_plain

    plain = to_plain(config)
    parts = {part: plain.get(part) for part in ("model", "data")}
    return {part: str(value.get("name", "")) for part, value in parts.items() if isinstance(value, Mapping)}


def measured(
    module: Any, batch: Mapping[str, Any], batch_size: int, attention: str = "auto", budget_s: float = 6.0
) -> dict[str, Any]:
    """Figures of a module on one batch.

    Args:
        module: The app's module, on its device.
        batch: Tensors on the same device.
        batch_size: Samples in the batch.
        attention: Backend to measure beside ``math``.
        budget_s: Seconds to spend on each kind of call.

    Returns:
        Plain values: parameters, flops, and for each kind of call and backend its times, throughput and memory.
    """
    total, trained = parameter_count(module)
    forward, train = forward_call(module, batch), train_call(module, batch)
    with dispatch.force(MATH):  # the literal formula is the one that the counter knows in full
        counted = {"forward": flops(forward), **({"train_step": flops(train)} if train else {})}
    backends, used = _backends(forward, attention)
    kinds = {"forward": forward, **({"train_step": train} if train else {})}
    calls = {
        name: _figures({backend: _forced(backend, call) for backend in backends}, batch_size, budget_s, module.device)
        for name, call in kinds.items()
    }
    return {"parameters": total, "trained_parameters": trained, "flops": counted, "attention": used, "calls": calls}


def _backends(forward: Callable[[], Any], attention: str) -> tuple[list[str], dict[str, Any]]:
    """Backends worth measuring: one where the model has no attention, or math itself was asked for."""
    dispatch.reset_used()
    with dispatch.force(attention):
        forward()
    used = dispatch.used()
    return ([attention] if attention == MATH or not used else [attention, MATH]), used


def _forced(backend: str, call: Callable[[], Any]) -> Callable[[], Any]:
    def forced() -> None:
        with dispatch.force(backend):
            call()

    return forced


def _figures(
    calls: Mapping[str, Callable[[], Any]], batch_size: int, budget_s: float, device: torch.device
) -> dict[str, Any]:
    timings = measure(calls, repeats=affordable(calls.values(), budget_s))
    figures: dict[str, Any] = {"backends": {}}
    for name, call in calls.items():
        p50, p90, fastest, slowest, runs = timings[name]
        times = {"p50_s": p50, "p90_s": p90, "min_s": fastest, "max_s": slowest, "repeats": len(runs)}
        peak = peak_memory(call, device)
        figures["backends"][name] = {**times, "samples_per_s": batch_size / p50, "peak_bytes": peak}
    if len(calls) == 2:
        fast, plain = timings.values()
        figures["ratio"] = ratio(plain, fast)._asdict()  # how many times faster than the plain formula
    return figures


def show(figures: Mapping[str, Any]) -> None:
    """Print the figures."""
    host = figures["machine"]
    place = host.get("gpu") or f"{host['cpu']}, {host['threads']} thread{'s' if host['threads'] > 1 else ''}"
    title = f"{figures['task']}: {figures.get('model', '')} on {figures.get('data', '')}, batch {figures['batch_size']}"
    print_table(rows(figures), f"{title}\n{place}, torch {host.get('torch', '')}")


def rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """Figures as rows of text, a header first."""
    first = next(iter(figures["calls"].values()))
    backends = list(first["backends"])
    compared = len(backends) == 2
    head = ["", *(f"attention {name}" if figures["attention"] else "value" for name in backends)]
    table = [[*head, *([f"{backends[1]} / {backends[0]}"] if compared else [])]]
    for name, call in figures["calls"].items():
        table += _call_rows(name.replace("_", " "), call, compared)
        gflops = number(figures["flops"][name] / 1e9)
        table.append([f"{name.replace('_', ' ')} GFLOPs", gflops, *([""] * compared), *([""] * compared)])
    table.append(["parameters", number(figures["parameters"]), *([""] * compared), *([""] * compared)])
    return table


def _call_rows(name: str, call: Mapping[str, Any], compared: bool) -> list[list[str]]:
    values = list(call["backends"].values())
    times = [f"{name} p50", *(latency(v["p50_s"]) for v in values)]
    if compared:
        found = call["ratio"]
        times.append(f"{found['median']:.2f} ({found['min']:.2f} - {found['max']:.2f})")
    blank = [""] * compared
    share = [f"{values[1]['peak_bytes'] / max(1, values[0]['peak_bytes']):.2f}"] if compared else []
    return [
        times,
        [f"{name} p90", *(latency(v["p90_s"]) for v in values), *blank],
        [f"{name} range", *(f"{latency(v['min_s'])} - {latency(v['max_s'])}" for v in values), *blank],
        [f"{name} samples/s", *(number(v["samples_per_s"]) for v in values), *blank],
        [f"{name} peak memory", *(size(v["peak_bytes"]) for v in values), *share],
    ]
