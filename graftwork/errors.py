"""Errors a user can mend: what is wrong, where, and what to do about it.

The command line prints them as one line and exits with code 2; ``--debug`` adds the traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend.

    Args:
        what: What was found and what was expected, one sentence without a full stop.
        where: The file, option or key at fault; empty if ``what`` names it already.
        mend: What to do, one sentence; empty if it is obvious.
    """

    def __init__(self, what: str, where: str = "", mend: str = "") -> None:
        self.what = what
        self.where = where
        self.mend = mend
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.mend}" if self.mend else text

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.what, self.where, self.mend)


class ConfigError(UserError):
    """A wrong key, name, value or combination of values in the configuration."""


class DataError(UserError):
    """A missing, corrupt or unsuitable file of the user's data."""


class ShapeError(UserError, ValueError):
    """An array or tensor of the wrong shape; the message names both shapes."""


class WeightsError(UserError):
    """Weights that cannot be read or do not fit the model."""


class MissingPackageError(UserError, ImportError):
    """An optional package that is not installed; the message names the extra."""


def missing_package(package: str, extra: str, needed_for: str) -> MissingPackageError:
    """The one sentence for an absent optional package."""
    return MissingPackageError(
        f"{needed_for} needs the package '{package}'",
        mend=f"Install it with: pip install 'graftwork[{extra}]'",
    )


def all_problems(problems: Sequence[str]) -> ConfigError:
    """One error that lists every problem, a line each."""
    if len(problems) == 1:
        return ConfigError(problems[0])
    return ConfigError(f"{len(problems)} problems:\n" + "\n".join(f"- {problem}" for problem in problems))
