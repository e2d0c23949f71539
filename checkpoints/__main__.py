"""``python -m checkpoints list | info | fetch | import | verify``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints import zoo
from graftwork.errors import UserError, WeightsError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns 0, 1 where a file is not what its entry says, or 2 for an error that the user can mend."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m checkpoints", description="Trained weights of the zoo.")
    parser.add_argument("--zoo", type=Path, default=zoo.ZOO, help="list of weights (default: the one shipped)")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _verb(verbs, "list", _list, "names, tasks, and whether the file is here")
    _verb(verbs, "info", _info, "task, size, metrics and configuration").add_argument("weights", help="NAME or PATH")
    _verb(verbs, "fetch", _fetch, "download weights and check them").add_argument("name")
    _verb(verbs, "verify", _verify, "compare every file that is here with its sha256")
    importing = _verb(verbs, "import", _import, "turn a checkpoint of a run into a zoo file, and print its entry")
    importing.add_argument("path", type=Path, help="best.ckpt of a run")
    importing.add_argument("name", help="name in the zoo")
    importing.add_argument("--about", default="", help="one line for the listing")
    return parser


def _verb(verbs: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=about, description=about)
    parser.set_defaults(run=run)
    return parser


def _list(options: argparse.Namespace) -> int:
    found = zoo.entries(options.zoo)
    for entry in found:
        here = "here" if entry.path(options.zoo).is_file() else "to fetch" if entry.url else "missing"
        print(f"{entry.name}  {entry.task}  {here}  {entry.about}".rstrip())
    if not found:
        print("the zoo is empty")
    return 0


def _info(options: argparse.Namespace) -> int:
    path = Path(options.weights)
    if not path.exists():
        path = zoo.local_file(options.weights, options.zoo)
    state, story = _read(path)
    print(f"file: {path}\nsha256: {zoo.sha256(path)}")
    print(f"tensors: {len(state)}\nvalues: {sum(tensor.numel() for tensor in state.values()):,}")
    for key in ("task", "version", "metrics", "config"):
        if story.get(key):
            print(f"{key}: {json.dumps(story[key]) if isinstance(story[key], dict) else story[key]}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    print(zoo.fetch(options.name, options.zoo))
    return 0


def _verify(options: argparse.Namespace) -> int:
    wrong = 0
    for entry in zoo.entries(options.zoo):
        path = entry.path(options.zoo)
        if not path.is_file():
            wrong += bool(entry.file)
            print(f"{entry.name}: {'missing' if entry.file else 'not fetched'}")
            continue
        try:
            zoo.check(entry, path)
            print(f"{entry.name}: ok")
        except WeightsError as error:
            wrong += 1
            print(f"{entry.name}: {error}")
    return 1 if wrong else 0


def _import(options: argparse.Namespace) -> int:
    from checkpoints.safe import safe_bytes

    state, story = _read(options.path)
    if not story.get("task"):
        raise WeightsError("is no checkpoint of a run", where=str(options.path), mend="Give best.ckpt of a run folder")
    entry = zoo.Entry(options.name, story["task"], sha256="", file=f"{options.name}.safetensors", about=options.about)
    path = entry.path(options.zoo)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: story.get(key) for key in ("task", "config", "info", "metrics", "version")}
    path.write_bytes(safe_bytes(state, {**kept, "config": _without_places(story.get("config") or {})}))
    print(f"- name: {entry.name}\n  task: {entry.task}\n  file: {entry.file}\n  sha256: {zoo.sha256(path)}")
    if entry.about:
        print(f"  about: {json.dumps(entry.about)}")
    return 0


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the folders of the machine that it ran on: weights of the zoo are passed on."""
    places = {"run": ("dir", "root"), "data": ("root",)}
    return {
        part: {key: value for key, value in section.items() if key not in places.get(part, ())}
        if isinstance(section, Mapping)
        else section
        for part, section in config.items()
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and story of a checkpoint or a safetensors file."""
    import torch

    from checkpoints.reading import read_weights
    from checkpoints.safe import read_safe

    if path.suffix == ".safetensors":
        return read_safe(path)
    state = read_weights(path)  # refuses what is missing, damaged or unsafe
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state, dict(content.get("graftwork", {}))


if __name__ == "__main__":
    sys.exit(main())
