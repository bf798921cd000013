"""Which corpora this machine has, and their content hashes, which go into every run id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from experiments import recipes
from hicmae.errors import UsageError

GENERATED = "synthetic"
MANIFEST = "clips.csv"  # the generated corpus is whole when its list is there


class Fingerprints:
    """Content hashes of corpora by name, each taken once.

    A corpus that is not on this machine is listed in `missing` with the reason (which names the remedies). Its hash is then
    the one that the last launch recorded, so that a study can go on where only part of its data lie; else it is empty.
    """

    def __init__(self, recorded: Mapping[str, str] | None = None) -> None:
        self.missing: dict[str, str] = {}
        self.known: dict[str, str] = {}
        self._recorded = dict(recorded or {})

    def __call__(self, name: str) -> str:
        if name not in self.known:
            self.known[name] = self._take(name)
        return self.known[name]

    def _take(self, name: str) -> str:
        from hicmae.data import manifest

        reason = why_absent(name)
        if reason is None:
            return manifest.fingerprint(name)
        self.missing[name] = reason
        return self._recorded.get(name, "")

    def require(self, names: Iterable[str]) -> None:
        """Raise UsageError, saying where to put the data, when a corpus that runs are about to read is not here."""
        absent = [self.missing[name] for name in dict.fromkeys(names) if name in self.missing]
        if absent:
            raise UsageError(absent[0] if len(absent) == 1 else "; ".join(absent))


def why_absent(name: str) -> str | None:
    """None for a corpus that is here, else one line with the remedies. Raises UsageError for a name that no corpus has."""
    from hicmae.data import location

    recipes.corpus(name)
    try:
        root = location.corpus_root(name)
    except UsageError as absent:
        return str(absent)
    if name != GENERATED or (root / MANIFEST).exists():
        return None
    return f"{name}: not made yet; a launch makes it, or `hicmae data generate`"


def ensure_generated(names: Iterable[str], console: Console) -> None:
    """Make the generated corpus when it is wanted and absent."""
    root = to_be_made(names)
    if root is not None:
        make_generated(root, console)


def to_be_made(names: Iterable[str]) -> Path | None:
    """Where the generated corpus must be made; None when it is not wanted or there."""
    if GENERATED not in names or why_absent(GENERATED) is None:
        return None
    from hicmae.data import location

    return location.corpus_root(GENERATED)


def make_generated(root: Path, console: Console) -> None:
    """Make the generated corpus, and show how far it is."""
    from hicmae.data import synthetic

    console.print(f"making the generated corpus in {root}", highlight=False, soft_wrap=True)
    with Progress(*Progress.get_default_columns(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("clips", total=None)
        synthetic.generate(root, progress=lambda done, total: bar.update(task, completed=done, total=total))
