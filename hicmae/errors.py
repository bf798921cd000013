"""Errors that a user can cause and mend: one line each, the cause first, then the remedy.

The command line prints the line and exits with `exit_code`: 2 for bad usage, 1 for a failure.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import NoReturn


class HicmaeError(Exception):
    """A failure with a message of one line; exit code 1."""

    exit_code = 1


class UsageError(HicmaeError):
    """Something that the user asked for and that cannot be; exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration that cannot run: names the field, the value and what is allowed."""


class ClipError(HicmaeError):
    """A clip that cannot be used: names the file and the reason."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ClipError], tuple[str, str]]:
        """Workers raise it across processes, where exceptions are rebuilt from their arguments."""
        return type(self), (self.path, self.reason)


class RecordError(HicmaeError):
    """A run directory whose record is missing, half-written or damaged."""


class DivergedError(HicmaeError):
    """Training met a loss that is not finite; names the step."""

    def __init__(self, reason: str, step: int | None = None) -> None:
        super().__init__(reason)
        self.step = step


def nearest_first(name: str, valid: Iterable[str]) -> list[str]:
    """The valid names, the most similar to `name` first; equal ones in alphabetical order."""
    similarity = {other: SequenceMatcher(None, name.lower(), other.lower()).ratio() for other in valid}
    return sorted(similarity, key=lambda other: (-similarity[other], other))


def raise_unknown(kind: str, name: str, valid: Iterable[str]) -> NoReturn:
    """Raise the UsageError for a name that nothing answers to, with the valid ones, nearest first."""
    names = ", ".join(nearest_first(name, valid)) or "(none)"
    raise UsageError(f"unknown {kind} {name!r}; valid, nearest first: {names}")
