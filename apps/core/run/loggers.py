"""Where numbers go: ``metrics.csv`` in the run folder, always, and Weights & Biases, where it is wanted."""

from __future__ import annotations

import csv
import io
import logging
import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from apps.core.config import LogConfig
from apps.core.run.atomic import cannot_write, replace_file
from apps.core.run.folder import RunFolder
from graftwork.errors import UserError, missing_package

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """Rows of logged numbers as CSV: ``step``, ``epoch``, then names in the order in which they first appeared.

    Each row is written when it is logged. A file of an earlier part of the run is gone on with.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step", "epoch"]
        self._opened = False

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Version of the logger; a run has one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder keeps the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Append a row."""
        row = {name: float(value) for name, value in metrics.items()}
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])
        row["step"] = step if step is not None else 0
        self._open()
        fresh = [name for name in row if name not in self._columns]
        if fresh:
            rows = self._rows()
            self._columns += fresh
            self._rewrite(rows)
        self._append(row)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget rows of ``step`` and later: a resumed run logs them again."""
        if self.path.exists():
            self._open()
            self._rewrite([row for row in self._rows() if _step(row) < step])

    @rank_zero_only
    def start_over(self) -> None:
        """Forget all rows."""
        self.rewind(-1)

    def _open(self) -> None:
        """Take over the columns of an existing file, once."""
        if self._opened:
            return
        self._opened = True
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as stream:
                found = next(csv.reader(stream), [])
            self._columns += [name for name in found if name not in self._columns]
        self._rewrite(self._rows())

    def _rows(self) -> list[dict[str, str]]:
        """Whole rows of the file; one that a kill cut short is left out."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        return [row for row in csv.DictReader(io.StringIO(whole)) if row.get("step")]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self.path, text.getvalue())

    def _append(self, row: Mapping[str, Any]) -> None:
        line = io.StringIO()
        csv.DictWriter(line, self._columns, lineterminator="\n").writerow(row)
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line.getvalue())
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _step(row: Mapping[str, str]) -> int:
    try:
        return int(float(row["step"]))
    except ValueError:
        return -1


def build_loggers(config: LogConfig, folder: RunFolder, task: str, name: str) -> list[Logger]:
    """The metrics file, and W&B where it is wanted and can be had.

    Args:
        config: What the user wants.
        folder: The run's folder.
        task: Name of the task.
        name: Name of the run.
    """
    loggers: list[Logger] = [MetricsFile(folder.metrics_file)]
    mode = wandb_mode(config)
    if mode != "off" and folder.writes:
        wandb_logger = _wandb(config, folder, task, name, mode)
        loggers += [wandb_logger] if wandb_logger is not None else []
    return loggers


@contextmanager
def closing(loggers: Sequence[Any]) -> Iterator[None]:
    """Tell W&B how a run ended, so that another one can begin in this process."""
    code = 1
    try:
        yield
        code = 0
    finally:
        for logger in loggers:
            if hasattr(logger, "log_image"):
                logger.experiment.finish(exit_code=code)


def wandb_mode(config: LogConfig) -> str:
    """``online``, ``offline`` or ``off``; never asks, never connects.

    ``auto`` is what ``WANDB_MODE`` says, else online for users who are logged in and offline for others.
    """
    if config.wandb != "auto":
        return config.wandb
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted in ("disabled", "dryrun", "offline", "online"):
        return {"disabled": "off", "dryrun": "offline"}.get(wanted, wanted)
    return "online" if _logged_in() else "offline"


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


_SILENCE = {
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
}


_HOME = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")


def _wandb(config: LogConfig, folder: RunFolder, task: str, name: str, mode: str) -> Logger | None:
    """W&B's logger; None where ``auto`` cannot have it."""
    inside = {"WANDB_DIR": folder.path}
    if mode == "offline":  # W&B keeps caches and settings in the home folder otherwise
        inside |= dict.fromkeys(_HOME, folder.path / "wandb" / "home")
    os.environ.update({**_SILENCE, **{key: str(path.resolve()) for key, path in inside.items()}})
    try:
        import wandb
        from pytorch_lightning.loggers import WandbLogger

        folder.path.joinpath("wandb").mkdir(exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True)
        identity = folder.notes().get("wandb_id")
        run = wandb.init(  # by hand: Lightning passes a setting that W&B warns about
            name=name,
            project=config.project,
            dir=str(folder.path),
            mode="offline" if mode == "offline" else "online",
            id=identity,
            resume="allow" if identity and mode == "online" else None,
            tags=[task, *config.tags],
            settings=settings,
        )
        logger = WandbLogger(experiment=run, save_dir=str(folder.path))
        folder.note("wandb_id", logger.experiment.id)
    except ImportError as error:
        if config.wandb != "auto":
            raise missing_package("wandb", "wandb", "log.wandb") from error
        log.info("wandb is not installed; numbers go to %s alone", folder.metrics_file)
        return None
    except Exception as error:  # W&B raises many kinds; a run must not end because of its log
        if config.wandb == "online":
            raise UserError(f"W&B cannot be started: {error}", "log.wandb=online", "Try --log.wandb offline") from error
        log.warning("W&B cannot be started (%s); numbers go to %s alone", error, folder.metrics_file)
        return None
    return logger
