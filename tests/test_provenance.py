"""The snapshot says what a result depends on, from real repositories, and of the environment only the job's numbers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hicmae import presets, provenance
from hicmae.record import write_json


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository that holds a package of the project's name."""
    (tmp_path / "hicmae").mkdir()
    (tmp_path / "hicmae" / "model.py").write_text("WIDTH = 512\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-q", "-m", "first")
    return tmp_path


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_a_clean_checkout_is_its_commit(repository: Path) -> None:
    code = provenance.code(repository)
    assert code["commit"] == git(repository, "rev-parse", "HEAD")
    assert code["dirty"] is False and code["changed"] == [] and code["diff"] == ""


def test_an_edit_makes_it_dirty_and_is_kept_and_leaves_the_repository_alone(repository: Path) -> None:
    clean = provenance.code(repository)
    (repository / "hicmae" / "model.py").write_text("WIDTH = 384\n")
    (repository / "hicmae" / "new.py").write_text("")
    index = (repository / ".git" / "index").read_bytes()
    code = provenance.code(repository)
    assert code["dirty"] is True and code["commit"] == clean["commit"] and code["tree"] != clean["tree"]
    assert "-WIDTH = 512\n+WIDTH = 384" in code["diff"]
    assert set(code["changed"]) == {"hicmae/model.py", "hicmae/new.py"}
    assert (repository / ".git" / "index").read_bytes() == index


def test_without_a_repository_there_is_still_the_hash_of_the_source(repository: Path, tmp_path: Path) -> None:
    bare = tmp_path / "hicmae"
    copy = tmp_path / "elsewhere" / "hicmae"
    copy.parent.mkdir()
    bare.rename(copy)
    code = provenance.code(copy.parent)  # below somebody else's repository, as an installed package can be
    assert code["commit"] is None and code["dirty"] is None
    git(tmp_path, "checkout", "-q", "hicmae")
    assert code["tree"] == provenance.source_digest(tmp_path)


def test_names_and_bounds_of_files_count_for_the_source_hash(tmp_path: Path) -> None:
    digests = set()
    for i, files in enumerate(({"a.py": "x", "b.py": "y"}, {"a.py": "xy", "b.py": ""}, {"a.py": "x", "c.py": "y"})):
        for name, text in files.items():
            path = tmp_path / str(i) / "hicmae" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        digests.add(provenance.source_digest(tmp_path / str(i)))
    assert len(digests) == 3


def test_the_snapshot_is_whole_and_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    snapshot = provenance.snapshot(presets.pretrain("smoke"), "f" * 32, 2)
    write_json(tmp_path / "snapshot.json", snapshot)
    text = (tmp_path / "snapshot.json").read_text()
    assert "s3cr3t" not in text
    read = json.loads(text)
    assert read["data"] == {"corpus": "voxceleb2", "fingerprint": "f" * 32}
    assert read["launch"]["job"] == {"slurm_job_id": "4711"} and read["launch"]["processes"] == 2
    assert read["environment"]["packages"]["torch"].startswith("2.")
    assert read["hardware"]["cores"] >= 1 and read["hardware"]["memory_bytes"] > 0
    assert read["seeds"]["seed"] == 0
