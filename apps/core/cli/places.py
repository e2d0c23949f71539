"""Files that a command line names: the configuration of a run to go on with, and places that cannot be used."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from apps.core.cli.layers import read_yaml
from apps.core.cli.words import Words

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
WRONG = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG)

_DEFAULT = {"predict": "output", "export": "output", "benchmark": "json"}


def run_config(verb: str, words: Words) -> dict[str, Any] | None:
    """Configuration of the run that ``--resume`` or ``--run.dir`` names, for want of any ``--config``.

    Returns:
        Raw values without the folder of the run, which may have moved; for validate and test also without what belongs
        to the machine. None where no run is named or it has no configuration.

    Raises:
        ConfigError: The run's ``config.yaml`` is no YAML.
    """
    folder = None if words.configs else _run_folder(verb, words)
    if folder is None or not (folder / "config.yaml").is_file():
        return None
    config = read_yaml(folder / "config.yaml")
    if isinstance(config.get("run"), dict):
        config["run"].pop("dir", None)
    if verb != "fit" and isinstance(config.get("trainer"), dict):
        from apps.core.checkpoints.read import MACHINE

        config["trainer"] = {key: value for key, value in config["trainer"].items() if key not in MACHINE}
    return config


def _run_folder(verb: str, words: Words) -> Path | None:
    resume, run = words.options.get("resume", ""), str(words.overrides.get("run.dir", ""))
    if verb == "fit" and resume and resume != "last":
        path = Path(resume)
        if path.is_dir():
            return path
        return path.resolve().parent.parent if path.resolve().parent.name == "checkpoints" else None
    resumes = verb == "fit" and resume == "last"
    scores = verb in ("validate", "test") and "weights" not in words.options
    return Path(run) if run and (resumes or scores) else None


def explained(error: OSError, verb: str, words: Words) -> str:
    """One sentence for a file system's error: which place, and which option to change; empty where it is no user's."""
    if error.errno not in (*FULL, *CLOSED, *WRONG) or (error.errno in WRONG and not error.filename):
        return ""
    option, given = _related(error.filename, words)
    if error.errno in WRONG:
        return f"{error.filename}: {error.strerror}. {f'Check {option}' if option else '--debug shows what needs it'}"
    if not option:
        option, given = _usual(verb, words)
    place = str(error.filename or given or "the folder of runs")
    if error.errno in FULL:
        return f"{place}: {error.strerror}. Free some space, or choose another place by {option}"
    return f"{place}: {error.strerror}. Choose a place that you may use by {option}"


def _related(filename: Any, words: Words) -> tuple[str, str]:
    """The option that leads to a file, and its value; empty where none does."""
    if not filename or isinstance(filename, int):
        return "", ""
    given = _given(words)
    for related in (_is_at, _is_beside):
        for key, value in given.items():
            if value and related(_text(filename), value):
                return f"--{key}", value
    return "", ""


def _usual(verb: str, words: Words) -> tuple[str, str]:
    """The option that says where a verb writes, and its value."""
    given = _given(words)
    for key in (_DEFAULT.get(verb, ""), "run.dir", "run.root"):
        if key in given:
            return f"--{key}", given[key]
    return (f"--{_DEFAULT[verb]}" if verb in _DEFAULT else "--run.dir or --run.root"), ""


def _given(words: Words) -> dict[str, str]:
    given = {**words.options, **{key: str(value) for key, value in words.overrides.items()}}
    return given | ({"config": words.configs[-1]} if words.configs else {})


def _text(filename: Any) -> str:
    return filename.decode(errors="replace") if isinstance(filename, bytes) else str(filename)


def _is_at(file: str, value: str) -> bool:
    """Whether a value is the file, a folder that holds it, or lies below it."""
    one, other = Path(file).absolute(), Path(value).absolute()
    return one == other or other in one.parents or (one in other.parents and one not in Path().absolute().parents)


def _is_beside(file: str, value: str) -> bool:
    """Whether a file stands beside the one that a value names, as unfinished ones do."""
    return Path(value).suffix != "" and Path(file).absolute().parent == Path(value).absolute().parent
