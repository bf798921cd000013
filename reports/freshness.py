"""Whether a report was made from the records as they are now: a stamp of all that it read, light to compute and to import."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import hicmae.pictures
from reports.query import STUDIES, require_studies, run_ids

STAMP = ".made-from"
_READ = ("config.json", "snapshot.json", "events.jsonl", "metrics.jsonl", "predictions.parquet", "result.json")
_DRAWN = "pictures/reconstruction-1.png"


def is_current(
    runs_root: Path, out: Path, name: str | None = None, extras: Sequence[str] | None = None, pdf: bool = True
) -> bool:
    """Whether the report in `out` was made from these records; looks at sizes and times, reads no predictions."""
    try:
        return (out / "report.html").exists() and (out / STAMP).read_text() == _stamp(runs_root, name, extras, pdf)
    except OSError:
        return False


def write_stamp(runs_root: Path, out: Path, name: str | None, extras: Sequence[str] | None, pdf: bool) -> None:
    """Note what the report in `out` was made from."""
    (out / STAMP).write_text(_stamp(runs_root, name, extras, pdf))


def _stamp(runs_root: Path, name: str | None, extras: Sequence[str] | None, pdf: bool) -> str:
    own = [path for path in sorted(Path(__file__).parent.glob("**/*")) if path.suffix in {".py", ".j2", ".csv"}]
    files = [runs_root / "_mlflow" / "links.json", *own, Path(str(hicmae.pictures.__file__))]
    for study in require_studies(runs_root, name):
        files += [runs_root / STUDIES / f"{study}.json", *sorted((runs_root / STUDIES / study / "figures").glob("*"))]
        files += [runs_root / run / file for run in run_ids(runs_root, study) for file in (*_READ, _DRAWN)]
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    wanted = [name, None if extras is None else list(extras), pdf and shutil.which("latexmk") is not None]
    return hashlib.sha256(json.dumps([wanted, seen]).encode()).hexdigest()
