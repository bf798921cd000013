"""The code that runs are executed from: a copy taken at launch, so that edits do not reach runs that wait.

The copy lies in `runs/_code/<tree>`, named by its content; launches of unchanged code share it. In a git checkout it is also a
commit (of the dirty tree, made without touching the index, the working tree or any ref).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hicmae.errors import HicmaeError
from hicmae.record import write_json

FOLDER = "_code"
INFO = "snapshot.json"  # beside the code: what it is a copy of
DIFF_LIMIT = 200_000  # characters of the difference that are kept
ROOT = Path(__file__).resolve().parent.parent
PARTS = ("hicmae", "experiments", "ablations", "slurm", "reports", "setup.cfg", "pyproject.toml")
_AUTHOR = {
    f"GIT_{who}_{what}": text
    for who in ("AUTHOR", "COMMITTER")
    for what, text in (("NAME", "hicmae"), ("EMAIL", "hicmae@localhost"))
}


@dataclass(frozen=True)
class Snapshot:
    """A copy of the code: where it lies, what it is."""

    path: Path
    tree: str  # of its content
    commit: str | None = None  # that holds exactly this code
    parent: str | None = None  # the commit checked out when it was taken
    dirty: bool = False  # whether it differs from the parent

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def take(runs_root: Path, root: Path = ROOT) -> Snapshot:
    """Copy the code of a checkout (or of an installation) below `runs_root`, unless this very code is there already."""
    checkout = _is_checkout(root)
    taken = _from_git(runs_root, root) if checkout else _from_files(runs_root, root)
    if not (taken.path / INFO).exists():
        write_json(taken.path / INFO, {**taken.to_json(), **(_difference(root, taken) if checkout else {})})
    return taken


def of_commit(runs_root: Path, commit: str, root: Path = ROOT) -> Snapshot | None:
    """The code of a commit, among the copies below `runs_root`; None where git does not have it."""
    if not _is_checkout(root) or _git(root, "cat-file", "-t", commit, may_fail=True) != "commit":
        return None
    tree = _git(root, "rev-parse", f"{commit}^{{tree}}")
    taken = Snapshot(runs_root.absolute() / FOLDER / tree, tree, _git(root, "rev-parse", commit))
    if not (taken.path / INFO).exists():
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            _git(root, "read-tree", commit, environment=index)
            _put(taken.path, lambda target: _check_out(root, target, index))
        write_json(taken.path / INFO, {**taken.to_json(), "changed": [], "diff": ""})
    return taken


def _difference(root: Path, taken: Snapshot) -> dict[str, Any]:
    """What the copy has that the commit below it has not; read by hicmae.provenance."""
    if not taken.dirty or taken.parent is None:
        return {"changed": [], "diff": ""}
    changed = _git(root, "diff", "--name-only", taken.parent, taken.tree).splitlines()
    return {"changed": changed, "diff": _git(root, "diff", taken.parent, taken.tree)[:DIFF_LIMIT]}


def _from_git(runs_root: Path, root: Path) -> Snapshot:
    parent = _git(root, "rev-parse", "--verify", "--quiet", "HEAD", may_fail=True) or None
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}  # not the user's
        if parent:
            _git(root, "read-tree", parent, environment=index)
        _git(root, "add", "--update", environment=index)
        _git(root, "add", "--", *(name for name in PARTS if (root / name).exists()), environment=index)
        tree = _git(root, "write-tree", environment=index)
        dirty = parent is None or _git(root, "rev-parse", f"{parent}^{{tree}}") != tree
        place = runs_root.absolute() / FOLDER / tree
        if (place / INFO).exists():
            commit = json.loads((place / INFO).read_text())["commit"]
            return Snapshot(place, tree, commit, parent, dirty)
        _put(place, lambda target: _check_out(root, target, index))
    return Snapshot(place, tree, _commit(root, tree, parent) if dirty else parent, parent, dirty)


def _commit(root: Path, tree: str, parent: str | None) -> str:
    parents = ["-p", parent] if parent else []
    return _git(root, "commit-tree", tree, *parents, "-m", "Code of a launch", environment=_AUTHOR)


def _check_out(root: Path, target: Path, index: Mapping[str, str]) -> None:
    names = _git(root, "ls-files", "-z", "--", *PARTS, environment=index)
    _git(root, "checkout-index", "-z", "--stdin", f"--prefix={target}/", environment=index, text=names)


def _from_files(runs_root: Path, root: Path) -> Snapshot:
    digest = hashlib.sha256()
    for path in _files(root):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    tree = digest.hexdigest()[:40]
    place = runs_root.absolute() / FOLDER / tree
    if not place.exists():
        _put(place, lambda target: _copy(root, target))
    return Snapshot(place, tree)


def _files(root: Path) -> Iterator[Path]:
    for name in PARTS:
        top = root / name
        inside = top.rglob("*") if top.is_dir() else [top]
        yield from sorted(path for path in inside if path.is_file() and path.suffix != ".pyc")


def _copy(root: Path, target: Path) -> None:
    for path in _files(root):
        place = target / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)


def _put(place: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under another name and rename it, so that it is there whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))
    try:
        fill(temporary)
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(place)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not place.exists():  # else another launcher was faster
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_checkout(root: Path) -> bool:
    if shutil.which("git") is None:
        return False
    top = _git(root, "rev-parse", "--show-toplevel", may_fail=True)
    return bool(top) and Path(top).resolve() == root.resolve()


def _git(
    root: Path, *arguments: str, may_fail: bool = False, environment: Mapping[str, str] | None = None, text: str | None = None
) -> str:
    variables = {**os.environ, **(environment or {})}
    command = ["git", *arguments]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, env=variables, input=text or "", check=False)
    if ended.returncode and not may_fail:
        raise HicmaeError(
            f"git {arguments[0]}: {' '.join(ended.stderr.split())[-300:]}; a launch keeps its code by git, mend the repository"
        )
    return ended.stdout.strip() if not ended.returncode else ""
