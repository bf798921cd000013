"""What a report consists of: every file with its SHA-256, the columns asked for, and what the pictures were drawn from.

`report-manifest.json` lies beside report.html. `hicmae report --check` compares with it; a later report takes away the files that
an earlier one left and that it does not have itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import hicmae.pictures
from hicmae.errors import RecordError
from hicmae.record import write_json
from reports.query import STUDIES, run_ids

NAME = "report-manifest.json"
MISSING = "missing or unreadable; `hicmae report` writes it"
CHANGED = "changed or damaged since it was written; `hicmae report` renews it"
_DRAWN = ("metrics.jsonl", "pictures/reconstruction-1.png")  # of a run, beside what the tables' files say


@dataclass(frozen=True)
class Part:
    """A study's folder, or the report itself: file (below the report's folder) -> SHA-256, and what cannot be read off these.

    `columns` as asked for, `pictures` with their captions, `undrawn` why there are none.
    """

    files: Mapping[str, str]
    columns: Sequence[str] | None = None
    drawn_from: str = ""
    pictures: Sequence[Sequence[str]] = ()
    undrawn: Sequence[str] = ()


@dataclass(frozen=True)
class Manifest:
    """`studies` are those of all reports written into the folder, `shown` those of the last one's pages."""

    shown: Sequence[str] = ()
    report: Part = field(default_factory=lambda: Part({}))
    studies: Mapping[str, Part] = field(default_factory=dict)


def read(out: Path) -> Manifest | None:
    """The manifest of a folder, None where there is none. Raises RecordError when it is damaged."""
    try:
        values = json.loads((out / NAME).read_text(encoding="utf-8"))
        parts = {name: Part(**part) for name, part in values["studies"].items()}
        return Manifest(list(values["shown"]), Part(**values["report"]), parts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{out / NAME}: damaged ({error!r}); `hicmae report` writes it anew") from None


def write(out: Path, shown: Sequence[str], report: Part, studies: Mapping[str, Part]) -> None:
    """Note what was written, and remove what an earlier report left in these places."""
    try:
        earlier = read(out) or Manifest()
    except RecordError:
        earlier = Manifest()
    replaced = [earlier.report, *(part for name, part in earlier.studies.items() if name in studies)]
    before = {file: digest for part in replaced for file, digest in part.files.items()}
    now = {file for part in (report, *studies.values()) for file in part.files}
    for file in before.keys() - now:
        if digest_of(out / file) == before[file]:  # what somebody has put there since is not ours to remove
            (out / file).unlink()
    write_json(out / NAME, asdict(Manifest(list(shown), report, {**earlier.studies, **studies})))


def digests(out: Path, files: Iterable[Path]) -> dict[str, str]:
    """file below `out` -> SHA-256."""
    return {path.relative_to(out).as_posix(): digest_of(path) for path in sorted(files)}


def wrong(out: Path, part: Part) -> dict[str, str]:
    """file -> why, for every file that is not as it was written."""
    found = {file: digest_of(out / file) for file in part.files}
    return {file: CHANGED if digest else MISSING for file, digest in found.items() if digest != part.files[file]}


def digest_of(path: Path) -> str:
    """The SHA-256 of a file; empty where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def drawn_from(runs_root: Path, study: str) -> str:
    """A digest of what the pictures of a study show that its tables' files do not, and of the code that draws them."""
    digest = hashlib.sha256(f"matplotlib {version('matplotlib')}".encode())
    own = [*Path(__file__).parent.glob("*.py"), Path(str(hicmae.pictures.__file__))]
    of_runs = [runs_root / run / name for run in run_ids(runs_root, study) for name in _DRAWN]
    of_search = sorted((runs_root / STUDIES / study / "figures").glob("*.p[nd][gf]"))
    for path in [*sorted(own), *of_runs, *of_search]:
        digest.update(f"{path.name} {digest_of(path)}\n".encode())
    return digest.hexdigest()
