"""The folder of a run: everything that it leaves behind, every file written whole. Imports no torch."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.core.config import RunConfig
from apps.core.run.atomic import cannot_write, clean_unfinished, json_text, replace_file
from apps.core.run.processes import RUN_DIR, is_first_process, shared_stamp, started_elsewhere
from graftwork.errors import UserError

if TYPE_CHECKING:
    from apps.core.protocols import Picture

log = logging.getLogger(__name__)


class RunFolder:
    """Files of one run.

    Args:
        path: The folder.
        writes: Whether this process writes; only the first of several does.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes

    @classmethod
    def create(cls, task: str, run: RunConfig, default_name: str, verb: str = "fit") -> RunFolder:
        """Make the folder of a new run: ``run.dir``, or ``<root>/<task>/<name>/<stamp>`` with a new stamp.

        Args:
            task: Name of the task.
            run: Where runs live.
            default_name: Name of the run where the user gave none.
            verb: What runs; only the folders of ``fit`` are looked up again by :meth:`latest`.

        Raises:
            UserError: The folder cannot be made or written to.
        """
        first = is_first_process()
        if run.dir:
            path = Path(run.dir)
        elif not first and RUN_DIR in os.environ:
            path = Path(os.environ[RUN_DIR])
        else:
            path = cls.home(task, run, default_name) / _stamp()
            path = _free(path) if first and not started_elsewhere() else path
        folder = cls(path, writes=first)
        folder.prepare(verb)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of an earlier run.

        Raises:
            UserError: There is no such folder.
        """
        if not Path(path).is_dir():
            raise UserError("no such run folder", where=str(path), mend="Check --run.dir, or list runs/<task>/<name>")
        return cls(path, writes=is_first_process())

    @staticmethod
    def home(task: str, run: RunConfig, default_name: str) -> Path:
        """Folder of all runs of one name."""
        return Path(run.root) / task / (run.name or default_name)

    @classmethod
    def latest(cls, task: str, run: RunConfig, default_name: str) -> RunFolder | None:
        """The newest ``fit`` of this task and name; None if there is none."""
        if not is_first_process() and RUN_DIR in os.environ:
            return cls(os.environ[RUN_DIR], writes=False)
        home = cls.home(task, run, default_name)
        runs = [path.parent for path in home.glob("*/checkpoints") if path.is_dir()]
        if not runs:
            return None
        return cls(max(runs, key=lambda path: _natural(path.name)), writes=is_first_process())

    def prepare(self, verb: str = "fit") -> None:
        """Make the folder where it is missing, remove what a killed writer left, and tell processes started from here.

        Raises:
            UserError: The folder cannot be made.
        """
        if not self.writes:
            return
        try:
            (self.checkpoints if verb == "fit" else self.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        for place in (self.path, self.checkpoints, self.media):
            for unfinished in clean_unfinished(place):
                log.info("removed %s, left unfinished by a run that was killed", unfinished.name)
        os.environ[RUN_DIR] = str(self.path.resolve())

    @property
    def checkpoints(self) -> Path:
        """Folder with ``last.ckpt`` and ``best.ckpt``."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Checkpoint to go on from."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint with the best validation."""
        return self.checkpoints / "best.ckpt"

    @property
    def config_file(self) -> Path:
        """Resolved configuration; a run restarts from it alone."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """Everything logged, a row per step."""
        return self.path / "metrics.csv"

    @property
    def media(self) -> Path:
        """Pictures, with ``index.json``."""
        return self.path / "media"

    def holds_run(self) -> bool:
        """Whether a run already lives here."""
        return self.last.exists() or self.best.exists() or self.config_file.exists()

    def write_config(self, text: str) -> None:
        """Keep the resolved configuration (YAML)."""
        self._write("config.yaml", text)

    def write_provenance(self, facts: Mapping[str, Any]) -> None:
        """Keep where the run comes from, see :func:`apps.core.run.provenance.provenance`."""
        self._write("provenance.json", json_text(facts))
        if facts.get("diff"):
            self._write("git.diff", str(facts["diff"]))

    def save_results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep result rows: dicts with ``metric``, ``value``, ``baseline``, ``published``, ``samples``, ``split``."""
        self._write("results.json", json_text(list(rows)))

    def results(self) -> list[dict[str, Any]]:
        """Result rows kept so far."""
        found = self._read("results.json", [])
        return found if isinstance(found, list) else []

    def save_picture(self, section: str, picture: Picture, score: float | None = None) -> Path:
        """Write a picture and enter it into ``media/index.json``.

        Args:
            section: ``best``, ``worst``, ``random``, ``summary`` or the app's own.
            picture: What to draw; a picture of the same section and name is replaced.
            score: Score of the sample, where it has one.
        """
        path = self.media / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', f'{section}_{picture.name}')}.png"
        if self.writes:
            _draw(picture.figure, path)
            entry = {"file": path.name, "section": section, "caption": picture.caption, "score": score}
            if picture.before is not None:
                before = path.with_name(f"{path.stem}_before.png")
                _draw(picture.before, before)
                entry["before"] = before.name
            others = [old for old in self._read("media/index.json", []) if old.get("file") != path.name]
            self._write("media/index.json", json_text([*others, entry]))
        return path

    def clear_pictures(self) -> None:
        """Forget the pictures of an earlier test in this folder."""
        if self.writes and self.media.is_dir():
            for path in self.media.iterdir():
                path.unlink()

    def note(self, key: str, value: Any) -> None:
        """Keep a plain value under ``key`` in ``notes.json``; an older value is replaced."""
        self._write("notes.json", json_text({**self.notes(), key: value}))

    def notes(self) -> dict[str, Any]:
        """Everything noted so far."""
        found = self._read("notes.json", {})
        return found if isinstance(found, dict) else {}

    def _write(self, name: str, text: str) -> None:
        if self.writes:
            replace_file(self.path / name, text)

    def _read(self, name: str, otherwise: Any) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return otherwise


def _draw(figure: Any, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")
    replace_file(path, drawn.getbuffer())


def _natural(name: str) -> list[tuple[int, str]]:
    """Order in which ``stamp-10`` comes after ``stamp-2``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _stamp() -> str:
    if not started_elsewhere():
        return time.strftime("%Y%m%d-%H%M%S")
    stamp = shared_stamp()
    if not stamp:
        raise UserError(
            "several processes were started at once and share no name for the run",
            mend="Give them all the same folder with --run.dir",
        )
    return stamp


def _free(path: Path) -> Path:
    """A folder of this name that did not exist, made now, so that two runs of one second do not share it."""
    for number in range(1, 10_000):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            if candidate.parent.is_dir():
                continue
            raise cannot_write(path, FileExistsError(17, "a parent folder is a file")) from None
        except OSError as error:
            raise cannot_write(candidate, error) from error
        return candidate
    raise UserError("ten thousand runs have begun in this second", where=str(path))
