"""One file that holds a study whole: its records, the code of its runs, its tables, with a checksum of everything.

    hicmae export ablation_hierarchical           # writes ablation_hierarchical.zip
    hicmae verify ablation_hierarchical.zip       # or a folder unpacked from it
    hicmae report --from ablation_hierarchical.zip

Below a folder named by the study lie `SHA256SUMS` (as `sha256sum -c` reads it), `EXPORT.json` (what was exported),
`environments/` (the packages that the runs had), `requirements.lock` (the exporter's), `tables/<study>/` and `runs/`, which is a
runs folder like any other. Equal records give equal bytes.
An archive comes from elsewhere, so nothing in it is trusted: names that lead out of it, links and doubled names are refused.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, Any

import hicmae
from experiments import recorded_code, study_file
from hicmae.errors import HicmaeError, UsageError
from hicmae.provenance import ROOT
from hicmae.whole import sync, written_whole
from reports import corpora, environments
from reports.environments import LOCK
from reports.provenance import mlflow_links

SUMS, ABOUT, TABLES, RUNS = "SHA256SUMS", "EXPORT.json", "tables", "runs"
FORMAT = 1
RECORD = ("config.json", "snapshot.json", "events.jsonl", "metrics.jsonl", "predictions.parquet", "result.json")
REPEATS = f"{RUNS}/_reproduced/"  # made by `hicmae reproduce` in an unpacked folder; no part of the archive
_DATE = (1980, 1, 1, 0, 0, 0)  # of every file: the time of the export is not part of what is exported
_STORED = (".safetensors", ".parquet", ".png", ".pdf")  # packed already
_LINE = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f]+)")
_BLOCK = 1 << 20
# What reading a damaged zip file raises, by where the damage is.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    OverflowError,
)

Contents = Path | bytes
Opener = Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Exported:
    """An archive just written; `notes` say what it could not hold."""

    path: Path
    files: int
    bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """What a check found: the study's name, the files as recorded, and a line for everything that is wrong."""

    study: str
    files: int
    problems: tuple[str, ...]


def export(
    runs_root: Path, name: str, target: Path, checkpoints: bool = False, progress: Callable[[int, int], None] = lambda i, n: None
) -> Exported:
    """Write the archive of a study, whole or not at all; `progress` is told files done and files in all.

    Raises UsageError for an unknown study and HicmaeError when the file cannot be written.
    """
    files, notes = _contents(runs_root, name, checkpoints)
    try:
        with written_whole(target) as temporary, temporary.open("wb") as file:
            _write(file, name, files, progress)
            sync(file)
        return Exported(target, len(files) + 1, target.stat().st_size, tuple(notes))
    except OSError as error:
        raise HicmaeError(f"{target}: not written ({error.strerror or error}); nothing was left half done") from None


def _write(file: IO[bytes], name: str, files: Mapping[str, Contents], progress: Callable[[int, int], None]) -> None:
    sums = []
    with zipfile.ZipFile(file, "w") as archive:
        for done, (inner, contents) in enumerate(sorted(files.items())):
            progress(done, len(files))
            sums.append(f"{_add(archive, f'{name}/{inner}', contents)}  {inner}\n")
        _add(archive, f"{name}/{SUMS}", "".join(sums).encode())
    progress(len(files), len(files))


def _add(archive: zipfile.ZipFile, name: str, contents: Contents) -> str:
    """Write a member and return the SHA-256 of what was written: a run may append to its files meanwhile."""
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    info.compress_type = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
    digest, large = hashlib.sha256(), isinstance(contents, Path) and contents.stat().st_size >= 1 << 31
    with archive.open(info, "w", force_zip64=large) as out:
        if isinstance(contents, bytes):
            out.write(contents)
            digest.update(contents)
        else:
            with contents.open("rb") as source:
                for block in iter(partial(source.read, _BLOCK), b""):
                    out.write(block)
                    digest.update(block)
    return digest.hexdigest()


def _contents(runs_root: Path, name: str, checkpoints: bool) -> tuple[dict[str, Contents], list[str]]:
    """name in the archive -> contents, of everything but the checksums; and what must be said about it."""
    study = study_file.read(runs_root, name)
    corpora.read_described(runs_root)
    ids = list(dict.fromkeys(run for row in study["runs"] for run in (*row.get("depends_on", ()), row["run_id"])))
    done = [run for run in ids if (runs_root / run / "result.json").exists()]
    code, without = recorded_code.of_runs(runs_root, ids)
    notes = _about_code(without)
    if len(done) < len(ids):
        notes.insert(0, f"{name} is not complete: {len(done)} of {len(ids)} runs are done; exported with what there is")
    files: dict[str, Contents] = {f"{RUNS}/_studies/{name}.json": study_file.path_of(runs_root, name), **_code(code)}
    for run in ids:
        files |= {f"{RUNS}/{run}/{file}": path for file in RECORD if (path := runs_root / run / file).is_file()}
        folders = ("pictures", "checkpoints") if checkpoints else ("pictures",)
        kept = [path for folder in folders for path in sorted((runs_root / run / folder).rglob("*"))]
        files |= {f"{RUNS}/{path.relative_to(runs_root).as_posix()}": path for path in kept if path.is_file()}
    pictures = sorted((runs_root / "_studies" / name / "figures").glob("*.p[nd][gf]"))
    files |= {f"{RUNS}/_studies/{name}/figures/{path.name}": path for path in pictures}
    files |= _told(runs_root, name, [row["corpus"] for row in study["runs"]])
    tables, problems = _tables(runs_root, name)
    files |= tables
    notes += [f"exported without tables: {problem}" for problem in problems if not tables]
    if (ROOT / LOCK).is_file():
        files[LOCK] = ROOT / LOCK
    else:
        notes.append(f"{LOCK} is not beside this installation; the versions of the runs are in {environments.FOLDER}/")
    of_runs, differences = environments.of_runs(runs_root, ids, (ROOT / LOCK).read_text() if LOCK in files else "")
    files |= of_runs
    notes += differences
    about = {"format": FORMAT, "study": name, "title": study.get("title", ""), "hicmae": hicmae.__version__}
    files[ABOUT] = _json(
        {**about, "runs": len(ids), "done": len(done), "without_code": sorted(without), "checkpoints": checkpoints}
    )
    return files, notes


def _code(folders: list[Path]) -> dict[str, Contents]:
    """The copies of code that the runs were executed from."""
    return {
        f"{RUNS}/_code/{folder.name}/{path.relative_to(folder).as_posix()}": path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _about_code(without: Mapping[str, str]) -> list[str]:
    more = f" (and so for {len(without) - 1} more runs)" if len(without) > 1 else ""
    return [f"exported without code: {reason}{more}" for reason in [*without.values()][:1]]


def _told(runs_root: Path, name: str, used: list[str]) -> dict[str, Contents]:
    """What tables say that is in no record: names and classes of corpora, MLflow's pages."""
    links = mlflow_links(runs_root).get(name)
    told: dict[str, Contents] = {f"{RUNS}/_mlflow/links.json": _json({name: links})} if links else {}
    described = {corpus: asdict(corpora.words(corpus)) for corpus in sorted(set(used))}
    return {**told, f"{RUNS}/{corpora.DESCRIBED}": _json(described)}


def _tables(runs_root: Path, name: str) -> tuple[dict[str, Contents], list[str]]:
    from reports.build import compute_pages, study_files

    pages, problems = compute_pages(runs_root, [name])
    return {f"{TABLES}/{name}/{file}": text.encode() for page in pages for file, text in study_files(page).items()}, problems


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()


@dataclass
class _Opened:
    """An archive or a folder, by name inside it: how to read every plain file, and what is wrong with the rest."""

    files: dict[str, Opener] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def digest(self, name: str, copy: Callable[[bytes], Any] = lambda block: None) -> str:
        """The SHA-256 of a file; every block of it is handed to `copy`."""
        digest = hashlib.sha256()
        with self.files[name]() as source:
            for block in iter(partial(source.read, _BLOCK), b""):
                digest.update(block)
                copy(block)
        return digest.hexdigest()


def verify(path: Path) -> Verified:
    """Check every file of an archive, or of a folder unpacked from it, against the recorded checksums.

    Raises UsageError for a path that is neither.
    """
    with _opened(path) as opened:
        return _verified(opened)


def _verified(opened: _Opened) -> Verified:
    problems, sums = [*opened.problems], _sums(opened)
    for name in sorted({*sums, *opened.files} - {SUMS}):
        if name not in opened.files:
            problems.append(f"missing: {name}")
        elif name not in sums:
            problems.append(f"extra: {name}")
        else:
            problems += _damage(opened, name, sums[name])
    return Verified(_study(opened), len(sums), tuple(dict.fromkeys([*opened.problems, *problems])))


def _damage(opened: _Opened, name: str, wanted: str) -> list[str]:
    try:
        return [] if opened.digest(name) == wanted else [f"damaged: {name} (not what was exported)"]
    except _BROKEN as error:
        return [f"damaged: {name} (unreadable: {str(error).partition(' for file ')[0]})"]


def _sums(opened: _Opened) -> dict[str, str]:
    """name -> SHA-256 as recorded; complaints go to the problems."""
    if SUMS not in opened.files:
        opened.problems += [] if opened.problems else [f"missing: {SUMS}"]
        return {}
    try:
        with opened.files[SUMS]() as source:
            text = source.read().decode()
    except _BROKEN as error:
        opened.problems.append(f"damaged: {SUMS} (unreadable: {error})")
        return {}
    found: dict[str, str] = {}
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match and _is_plain(match[2]) and match[2] not in found:
            found[match[2]] = match[1]
        elif line or number < len(lines):
            opened.problems.append(f"damaged: {SUMS} (line {number} is not a checksum and a name)")
    if lines[-1]:
        opened.problems.append(f"damaged: {SUMS} (cut off)")
    return found


def _study(opened: _Opened) -> str:
    try:
        with opened.files[ABOUT]() as source:
            return str(json.load(source)["study"])
    except (*_BROKEN, KeyError, TypeError):
        return ""


def _is_plain(name: str) -> bool:
    """Whether a name stays inside the folder that it is unpacked into, on any system."""
    parts = name.split("/")
    inside = not any(part in ("", ".", "..") for part in parts)
    return inside and "\\" not in name and not PureWindowsPath(name).drive and min(name) >= " "


@contextmanager
def _opened(path: Path) -> Iterator[_Opened]:
    if path.is_dir():
        yield _opened_folder(path)
    elif path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except _BROKEN as error:
            yield _Opened(problems=[f"damaged: {path.name} is no readable zip file ({error}); get it again"])
            return
        with archive:
            yield _opened_zip(archive)
    else:
        raise UsageError(f"{path}: no such archive or folder; `hicmae export STUDY` writes one")


def _opened_folder(path: Path) -> _Opened:
    opened = _Opened()
    for folder, folders, files in os.walk(path):
        for name in sorted([*files, *(each for each in folders if (Path(folder) / each).is_symlink())]):
            place = Path(folder) / name
            inner = place.relative_to(path).as_posix()
            if inner.startswith(REPEATS):
                continue
            if stat.S_ISREG(place.lstat().st_mode):
                opened.files[inner] = _opener(place)
            else:
                opened.problems.append(f"refused: {_shown(inner)} (a link or a special file)")
    return opened


def _opener(path: Path) -> Opener:
    return lambda: path.open("rb")


def _opened_zip(archive: zipfile.ZipFile) -> _Opened:
    opened = _Opened()
    top = next((info.filename[: -len(SUMS)] for info in archive.infolist() if _is_sums(info.filename)), "")
    for info in archive.infolist():
        inner, mode = info.filename.removeprefix(top), info.external_attr >> 16
        if not _is_plain(info.filename) or info.filename != info.orig_filename:
            opened.problems.append(f"refused: {_shown(info.orig_filename)} (its name leads out of the archive)")
        elif not info.filename.startswith(top):
            opened.problems.append(f"extra: {_shown(info.filename)} (outside of {top})")
        elif mode and not stat.S_ISREG(mode):
            opened.problems.append(f"refused: {_shown(inner)} (a link or a special file)")
        elif inner in opened.files:
            opened.problems.append(f"refused: {_shown(inner)} (there twice)")
        else:
            opened.files[inner] = partial(archive.open, info)
    return opened


def _is_sums(name: str) -> bool:
    return name.count("/") == 1 and name.endswith(f"/{SUMS}")


def _shown(name: str) -> str:
    """A name from elsewhere, without what would move a terminal's cursor."""
    return name if name.isprintable() else ascii(name)


def unpack(path: Path, folder: Path) -> Verified:
    """Verify an archive and write its files below `folder`. Raises HicmaeError when anything in it is not as exported."""
    with _opened(path) as opened:
        found = _verified(opened)
        _require_sound(path, found)
        for name in sorted(opened.files):
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as out:
                opened.digest(name, out.write)
    return found


def _require_sound(path: Path, found: Verified) -> None:
    if found.problems:
        more = f" and {len(found.problems) - 1} more" if len(found.problems) > 1 else ""
        raise HicmaeError(
            f"{path}: not as it was exported ({found.problems[0]}{more}); `hicmae verify` names everything; get the archive again"
        )


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[str, Path]]:
    """The study's name and the folder of an archive's files, verified; what was unpacked for it is gone afterwards."""
    if path.is_dir():
        found = verify(path)
        _require_sound(path, found)
        yield found.study, path
        return
    folder = Path(tempfile.mkdtemp(prefix="hicmae-"))
    try:
        yield unpack(path, folder).study, folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def different_tables(folder: Path, out: Path) -> tuple[int, list[str]]:
    """How many table files an unpacked archive has, and those of them that `out` has not, or not bit for bit."""
    wanted = sorted(path for path in (folder / TABLES).rglob("*") if path.is_file())
    names = [path.relative_to(folder / TABLES).as_posix() for path in wanted]
    same = [
        (out / name).is_file() and (out / name).read_bytes() == path.read_bytes()
        for name, path in zip(names, wanted, strict=True)
    ]
    return len(names), [name for name, equal in zip(names, same, strict=True) if not equal]
