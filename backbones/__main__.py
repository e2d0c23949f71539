"""The vision backbones: ``python -m backbones list``, ``show NAME``, ``benchmark [NAMES]``."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backbones.image_size import image_size
from backbones.tables import print_table, ratio_cells, write_rows
from backbones.vision.config import BACKBONES, TIMM
from backbones.vision.variants import FAMILIES, VARIANTS
from graftwork.errors import ConfigError, UserError
from graftwork.names import unknown


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    verbs = {"list": _list, "show": _show, "benchmark": _benchmark}
    try:
        verbs[options.verb](options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backbones", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("list", help="every backbone with its sizes; needs no torch")
    verb.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; all if omitted")
    _output(verb)
    verb = verbs.add_parser("show", help="levels, cost, options and weights of one backbone")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("--size", default="", help="image size in pixels, 224 or 512x1024 (default: the published one)")
    verb = verbs.add_parser("benchmark", help="latency, throughput and memory, measured here")
    verb.add_argument("names", nargs="*", metavar="NAME", help="backbones (default: a small one of each family)")
    verb.add_argument("--size", default="224", help="image size in pixels, 224 or 512x1024 (default: %(default)s)")
    verb.add_argument("--batch", type=int, default=1, help="images per call (default: %(default)s)")
    verb.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)")
    verb.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    verb.add_argument("--repeats", type=int, default=10, help="measured calls of each form (default: %(default)s)")
    verb.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    verb.add_argument("--train", action="store_true", help="also forward and backward")
    verb.add_argument("--compile", action="store_true", help="compile the models first")
    verb.add_argument("--attention", default="auto", help="backend of the attention core (default: %(default)s)")
    verb.add_argument("--against", default="", help="compare with 'math' (literal operators) or 'timm' (bare model)")
    _output(verb)
    return parser


def _output(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--output", type=Path, metavar="FILE", help="write the rows there, too: .csv or .json")


def _list(options: argparse.Namespace) -> None:
    for family in options.families:
        if family not in FAMILIES:
            raise unknown("family", family, FAMILIES)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "family": variant.family,
            "parameters": variant.parameters,
            "gmacs": variant.gmacs,
            "image_size": variant.image_size,
            "channels": list(variant.channels),
            "strides": list(variant.strides),
            "published_top1": variant.top1,
            "operators": list(FAMILIES[variant.family].operators),
        }
        for name, variant in VARIANTS.items()
        if not options.families or variant.family in options.families
    ]
    cells = [
        (
            row["name"],
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['gmacs']:.2f} @ {row['image_size']}",
            _joined(row["channels"]),
            _joined(row["strides"]),
            str(row["published_top1"] or "-"),
            ", ".join(row["operators"]) or "in timm",
        )
        for row in rows
    ]
    names = (
        "name",
        "M parameters",
        "GMACs @ pixels",
        "channels",
        "strides",
        "top-1 (published)",
        "attention operators",
    )
    print_table(names, cells, "Vision backbones; parameters of the classifier, 1000 classes")
    _list_more(options.families)
    write_rows(rows, options.output)


def _list_more(families: Sequence[str]) -> None:
    from backbones.vision.variants import MORE_TRUNKS

    if not families:
        print_table(("name", "what to know"), list(MORE_TRUNKS.items()), f"And every model of timm, as {TIMM}NAME:")


def _show(options: argparse.Namespace) -> None:
    config_class = BACKBONES.get(options.name)
    facts = getattr(config_class(), "facts", None)
    height, width = image_size(options.size or str(facts.image_size if facts else 224), "--size", 32, "224")

    from backbones.vision.measure import count, structure

    found = structure(options.name, height, width)
    family = FAMILIES.get(facts.family) if facts else None
    print(f"{options.name}: {family.title if family else inspect.getdoc(config_class)}")
    if family:
        print(f"weights: {family.source}")
    if facts and facts.top1:
        print(f"published: {facts.top1} % top-1 on ImageNet-1K, {facts.image_size} pixels")
    if facts and facts.drop_path is not None:
        print(f"drop path to train it with on ImageNet-1K: {facts.drop_path}")
    gmacs = count(options.name, height, width) / 1e9
    print(f"backbone: {found['parameters'] / 1e6:.2f} M parameters, {gmacs:.2f} GMACs at {height} x {width}")
    levels = zip(found["channels"], found["strides"], found["maps"], strict=True)
    cells = [(str(i), str(c), str(s), f"{h} x {w}") for i, (c, s, (h, w)) in enumerate(levels)]
    print_table(("level", "channels", "stride", f"map of {height} x {width}"), cells)
    _show_operators(family.operators if family else ())
    _show_options(config_class)


def _show_operators(operators: Sequence[str]) -> None:
    from backbones.attention import dispatch

    if not operators:
        print("attention: timm's own")
        return
    usable = [row.backend for row in dispatch.explain() if row.dtypes]
    print(f"attention operators: {', '.join(operators)}; usable here: {', '.join(usable)}")


def _show_options(config_class: type) -> None:
    helps = _field_docs(config_class)
    fields: Sequence[Any] = dataclasses.fields(config_class)
    cells = [(field.name, repr(field.default), helps.get(field.name, "")) for field in fields]
    print_table(
        ("option", "default", "meaning"), cells, "Options of create_backbone, and --model.backbone.OPTION of apps"
    )


def _field_docs(config_class: type) -> Mapping[str, str]:
    """Docstring under each field, from the source of the class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(inspect.getmro(config_class)):
        if dataclasses.is_dataclass(base) and "__annotations__" in vars(base):
            found = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', inspect.getsource(base), flags=re.M | re.S)
            texts |= {name: " ".join(text.split()) for name, text in found}
    return texts


def _benchmark(options: argparse.Namespace) -> None:
    height, width = image_size(options.size, "--size", 32, "224")
    for name in ("batch", "repeats"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)} must be at least 1")
    if options.dtype not in ("float32", "bfloat16", "float16"):
        raise unknown("dtype", options.dtype, ("float32", "bfloat16", "float16"))
    if options.against not in ("", "math", "timm"):
        raise unknown("rival", options.against, ("math", "timm"), "--against")
    for name in options.names:
        BACKBONES.get(name)

    import torch

    from backbones import attention
    from backbones.vision import measure

    attention.set_default(options.attention)
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = measure.Setting(
        height=height,
        width=width,
        batch=options.batch,
        dtype=options.dtype,
        device=_device(options.device),
        repeats=options.repeats,
        train=options.train,
        compiled=options.compile,
        against=options.against,
    )
    limits = measure.ceilings(setting)
    rows = [measure.benchmark(name, setting) for name in measure.chosen(options.names)]
    for row in rows:
        row["share_of_matmul"] = 2 * row["gmacs"] * options.batch / (row["latency_ms"] * limits["tflops"])
    _print_benchmark(rows, setting, f"{torch.get_num_threads()} threads")
    print(f"ceilings measured here: {limits['tflops']:.3f} TFLOP/s matrix product, {limits['gb_per_s']:.1f} GB/s copy")
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "setting": vars(setting), **limits}
    write_rows(rows, options.output, facts)


def _print_benchmark(rows: Sequence[Mapping[str, Any]], setting: Any, threads: str) -> None:
    names = ["name", "M par.", "GMACs", "latency ms", "range", "images/s", "MiB", "of matmul", "attention"]
    names += ["train ms", "train MiB"] if setting.train else []
    names += [f"{setting.against} / ours", "range"] if setting.against else []
    names += [f"train {setting.against} / ours", "range"] if setting.against and setting.train else []
    cells = []
    for row in rows:
        cell = [row["name"], f"{row['parameters'] / 1e6:.1f}", f"{row['gmacs']:.2f}", f"{row['latency_ms']:.1f}"]
        cell += [f"{row['fastest_ms']:.1f} - {row['slowest_ms']:.1f}", f"{row['images_per_s']:.1f}"]
        cell += [f"{row['memory_mib']:.0f}", f"{row['share_of_matmul']:.0%}"]
        cell += [", ".join(f"{name}: {by}" for name, by in row["attention"].items()) or "timm's own"]
        cell += [f"{row['train_latency_ms']:.1f}", f"{row['train_memory_mib']:.0f}"] if setting.train else []
        for prefix in ("", "train_"):
            if f"{prefix}ratio" in row:
                cell += ratio_cells(*(row[f"{prefix}ratio{end}"] for end in ("", "_min", "_max")))
        cells.append(cell)
    how = ", ".join([f"batch {setting.batch}", setting.dtype, setting.device, threads])
    compiled = ", compiled" if setting.compiled else ""
    print_table(names, cells, f"Forward pass at {setting.height} x {setting.width}, {how}{compiled}")


def _device(name: str) -> str:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"there is no device '{name}' here: {reason}", "--device", "Use cpu") from error
    return name


def _joined(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


if __name__ == "__main__":
    sys.exit(main())
