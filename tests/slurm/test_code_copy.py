"""The code of a launch: a copy with everything that is not committed, taken without a trace in the checkout."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm import code


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@localhost")
    return subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a committed, a changed, a staged, an untracked and an ignored file."""
    root = tmp_path / "checkout"
    for name in ("committed", "changed", "staged", "removed"):
        (root / "hicmae").mkdir(parents=True, exist_ok=True)
        (root / "hicmae" / f"{name}.py").write_text(f"{name} = 1\n")
    (root / "setup.cfg").write_text("[metadata]\n")
    (root / ".gitignore").write_text("*.ignored\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    (root / "hicmae" / "changed.py").write_text("changed = 2\n")
    (root / "hicmae" / "staged.py").write_text("staged = 2\n")
    git(root, "add", "hicmae/staged.py")
    (root / "hicmae" / "removed.py").unlink()
    (root / "hicmae" / "untracked.py").write_text("untracked = 1\n")
    (root / "hicmae" / "big.ignored").write_text("no\n")
    (root / "notes.txt").write_text("not code\n")
    return root


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py")}


def test_the_copy_is_the_working_tree(checkout: Path, tmp_path: Path) -> None:
    taken = code.take(tmp_path / "runs", checkout)
    assert contents(taken.path) == contents(checkout)
    assert not (taken.path / "hicmae" / "big.ignored").exists()
    assert not (taken.path / "notes.txt").exists()
    assert taken.dirty
    assert git(checkout, "rev-parse", f"{taken.commit}^{{tree}}").strip() == taken.tree
    assert git(checkout, "rev-parse", f"{taken.commit}^").strip() == taken.parent == git(checkout, "rev-parse", "HEAD").strip()


def test_taking_it_leaves_no_trace_in_the_checkout(checkout: Path, tmp_path: Path) -> None:
    def trace() -> tuple[str, bytes, str, str]:
        status, refs = git(checkout, "status", "--porcelain"), git(checkout, "for-each-ref")
        return status, (checkout / ".git" / "index").read_bytes(), refs, git(checkout, "stash", "list")

    git(checkout, "status")  # refreshes the index's times once
    before = trace()
    code.take(tmp_path / "runs", checkout)
    assert trace() == before


def test_edits_after_the_launch_do_not_reach_the_copy(checkout: Path, tmp_path: Path) -> None:
    taken = code.take(tmp_path / "runs", checkout)
    before = contents(taken.path)
    (checkout / "hicmae" / "changed.py").write_text("changed = 3\n")
    later = code.take(tmp_path / "runs", checkout)
    assert contents(taken.path) == before
    assert later.path != taken.path
    assert contents(later.path)["hicmae/changed.py"] == "changed = 3\n"


def test_unchanged_code_is_copied_once(checkout: Path, tmp_path: Path) -> None:
    assert code.take(tmp_path / "runs", checkout) == code.take(tmp_path / "runs", checkout)
    with ThreadPoolExecutor(4) as pool:
        paths = {taken.path for taken in pool.map(lambda _: code.take(tmp_path / "others", checkout), range(8))}
    assert len(paths) == 1
    assert [path.name for path in (tmp_path / "others" / "_code").iterdir()] == [paths.pop().name]


def test_a_clean_checkout_is_its_commit(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "second")
    taken = code.take(tmp_path / "runs", checkout)
    assert not taken.dirty
    assert taken.commit == taken.parent == git(checkout, "rev-parse", "HEAD").strip()


def test_what_differs_is_kept_with_the_copy(checkout: Path, tmp_path: Path) -> None:
    taken = code.take(tmp_path / "runs", checkout)
    kept = json.loads((taken.path / code.INFO).read_text())
    assert kept["commit"] == taken.commit
    assert set(kept["changed"]) == {f"hicmae/{name}.py" for name in ("changed", "staged", "removed", "untracked")}
    assert "+changed = 2" in kept["diff"]


def test_without_git_the_files_are_copied(checkout: Path, tmp_path: Path) -> None:
    subprocess.run(["rm", "-rf", str(checkout / ".git")], check=True)
    taken = code.take(tmp_path / "runs", checkout)
    assert contents(taken.path) == contents(checkout)
    assert taken.commit is None
    assert code.take(tmp_path / "runs", checkout) == taken
