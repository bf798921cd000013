"""Archives: whole or not at all, equal bytes for equal records, damage named, and tables rebuilt elsewhere bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from study_records import CorpusOnDisk, StudyOnDisk, VariantOnDisk
from typer.testing import CliRunner

from hicmae.errors import HicmaeError, UsageError
from hicmae.record import RunRecord, write_json
from reports import archive, environments
from reports.build import build_report

pytestmark = pytest.mark.xdist_group("archive")  # its fixtures are made once

CHECKOUT = Path(__file__).resolve().parents[2]
NAME = "a_study_smoke"
VARIANTS = [
    VariantOnDisk("base", 0.5, {"on": False}),
    VariantOnDisk("50% & \\input{x}_#", 0.7, {"on": True}, {"head.feature_fusion": "last"}),
]
TABLES = (".tex", ".csv", ".json", ".html", ".txt")


def write_study(root: Path, own: Path) -> StudyOnDisk:
    """Two variants on a known corpus and on somebody's own list; one run was never made, two records are damaged."""
    corpora = {"synthetic": CorpusOnDisk(folds=2), f"list:{own}": CorpusOnDisk(folds=2)}
    skipped = ("base", f"list:{own}", 2, 0)
    study = StudyOnDisk(root, NAME, VARIANTS, corpora, table={"baseline": "base"}, skip=lambda *run: run == skipped).write()
    (study.path("base", f"list:{own}", 1) / "predictions.parquet").write_bytes(b"no")
    (study.path(VARIANTS[1].name, f"list:{own}", 2) / "config.json").write_text("{")
    code = root / "_code" / ("a" * 40) / "hicmae"
    code.mkdir(parents=True)
    (code / "__init__.py").write_text("")
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyOnDisk:
    place = tmp_path_factory.mktemp("there")
    own = place / "own.txt"
    own.write_text("".join(f"{label}.mp4 {label}.wav {label}\n" for label in range(4)))
    study = write_study(place / "runs", own)
    run = study.path("base", "synthetic", 1).name
    (study.root / "_mlflow").mkdir()
    write_json(study.root / "_mlflow" / "links.json", {NAME: {run: "http://127.0.0.1:5000/#/1"}, "other": {"x": "y"}})
    (study.root / run / "checkpoints" / "final.safetensors").write_bytes(os.urandom(3000))
    return study


@pytest.fixture(scope="module")
def made(study: StudyOnDisk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive.export(study.root, NAME, tmp_path_factory.mktemp("made") / f"{NAME}.zip").path


@pytest.fixture(scope="module")
def folder(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked by a program that knows nothing of it."""
    place = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(made) as opened:
        opened.extractall(place)
    return place / NAME


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is in it


def test_it_holds_the_records_of_every_run_and_no_checkpoints(study: StudyOnDisk, folder: Path) -> None:
    found = files_of(folder)
    for run in study.runs:
        for name in archive.RECORD:
            place = study.root / run / name
            assert found.get(f"runs/{run}/{name}") == (place.read_bytes() if place.exists() else None)
    assert found[f"runs/_studies/{NAME}.json"] == study.study_file.read_bytes()
    assert found["requirements.lock"] == (CHECKOUT / "requirements.lock").read_bytes()
    assert not [name for name in found if "checkpoints" in name]
    assert json.loads(found["runs/_mlflow/links.json"]).keys() == {NAME}


def test_the_environments_of_the_runs_are_in_it_and_what_differs_from_the_lock_file_is_said(
    study: StudyOnDisk, made: Path, folder: Path, tmp_path: Path
) -> None:
    [file] = (folder / environments.FOLDER).iterdir()
    head, torch, runs = file.read_text().splitlines()
    started = sorted(run for run in study.runs if (study.root / run / "snapshot.json").exists())
    assert (head, torch, runs) == ("# Python 3.11.7 on ?", "torch==2.11.0", f"# runs: {' '.join(started)}")
    root = tmp_path / "runs"
    shutil.copytree(study.root, root)
    snapshot = RunRecord(root / started[0]).snapshot()
    write_json(
        root / started[0] / "snapshot.json", {**snapshot, "environment": {"python": "3.9.1", "packages": {"Torch": "1.13"}}}
    )
    notes = archive.export(root, NAME, tmp_path / "a.zip").notes
    locked = environments.pinned((CHECKOUT / "requirements.lock").read_text(), "3.9.1")["torch"]
    assert any("the runs had 2 different environments" in note for note in notes)
    assert any(f"that of 1 runs; they differ: torch 1.13 in the runs, {locked} in the lock file" in note for note in notes)


def test_the_lock_file_has_other_versions_for_other_pythons() -> None:
    """As pip reads it: a run under Python 3.11 differs from its lines for 3.11 alone."""
    lock = """
numpy==2.2.6 ; python_full_version < '3.11' \\
    --hash=sha256:00
numpy==2.4.6 ; python_full_version == '3.11.*' \\
    --hash=sha256:01
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:02
Typing_Extensions==4.1 \\
    --hash=sha256:03
winreg==1 ; sys_platform == 'win32'
"""
    found = {python: environments.pinned(lock, python) for python in ("3.10.13", "3.11.2", "3.13.0")}
    assert {python: versions["numpy"] for python, versions in found.items()} == {
        "3.10.13": "2.2.6",
        "3.11.2": "2.4.6",
        "3.13.0": "2.5.5",
    }
    assert all(versions["typing-extensions"] == "4.1" and "winreg" not in versions for versions in found.values())


def test_checkpoints_come_along_when_asked_for(study: StudyOnDisk, tmp_path: Path) -> None:
    made = archive.export(study.root, NAME, tmp_path / "all.zip", checkpoints=True)
    run = study.path("base", "synthetic", 1)
    with zipfile.ZipFile(made.path) as opened:
        weights = opened.read(f"{NAME}/runs/{run.name}/checkpoints/final.safetensors")
    assert weights == (run / "checkpoints" / "final.safetensors").read_bytes()


def test_it_says_in_a_line_what_it_could_not_hold(study: StudyOnDisk, tmp_path: Path) -> None:
    done, runs = sum((study.root / run / "result.json").exists() for run in study.runs), len(study.runs)
    assert done == runs - 1
    notes = archive.export(study.root, NAME, tmp_path / "a.zip").notes
    assert f"{NAME} is not complete: {done} of {runs} runs are done; exported with what there is" in notes
    assert [note for note in notes if "exported without code" in note and f"{done - 1} more runs" in note]


def test_the_code_of_the_runs_is_in_it(study: StudyOnDisk, tmp_path: Path) -> None:
    """The copy with the digest that the snapshot names, and no other."""
    from hicmae.provenance import source_digest

    root = tmp_path / "runs"
    shutil.copytree(study.root, root)
    copy = root / "_code" / ("b" * 40)
    (copy / "hicmae" / "__pycache__").mkdir(parents=True)
    (copy / "hicmae" / "__init__.py").write_text("X = 1\n")
    (copy / "hicmae" / "__pycache__" / "x.pyc").write_bytes(b"x")
    for run in study.runs:
        snapshot = RunRecord(root / run).snapshot()
        if snapshot:
            write_json(root / run / "snapshot.json", {**snapshot, "code": {**snapshot["code"], "tree": source_digest(copy)}})
    made = archive.export(root, NAME, tmp_path / "a.zip")
    assert not [note for note in made.notes if "code" in note]
    with zipfile.ZipFile(made.path) as opened:
        code = [name for name in opened.namelist() if "/_code/" in name]
    assert code == [f"{NAME}/runs/_code/{'b' * 40}/hicmae/__init__.py"]


def test_equal_records_give_equal_bytes_wherever_they_lie(study: StudyOnDisk, made: Path, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another" / "place"
    shutil.copytree(study.root, elsewhere)
    assert archive.export(elsewhere, NAME, tmp_path / "again.zip").path.read_bytes() == made.read_bytes()
    assert archive.export(folder / "runs", NAME, tmp_path / "handed-on.zip").path.read_bytes() == made.read_bytes()


def test_sha256sum_reads_the_checksums(folder: Path) -> None:
    checked = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", archive.SUMS], cwd=folder, check=False)
    assert checked.returncode == 0


# Whole or not at all


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_earlier_archive(study: StudyOnDisk, tmp_path: Path) -> None:
    target = tmp_path / "a.zip"
    target.write_bytes(b"earlier")
    with file_size_limit(20_000), pytest.raises(HicmaeError, match="not written"):
        archive.export(study.root, NAME, target)
    assert target.read_bytes() == b"earlier" and [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_ctrl_c_leaves_nothing(study: StudyOnDisk, tmp_path: Path) -> None:
    """With Python's own handler, whatever other tests have left, and the signal sent to this very thread."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(done: int, total: int) -> None:
        if done == 5:
            signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            archive.export(study.root, NAME, tmp_path / "a.zip", progress=interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []


# Damage


def test_what_was_exported_is_found_sound(made: Path, folder: Path) -> None:
    for path in (made, folder):
        found = archive.verify(path)
        assert found.problems == () and found.study == NAME and found.files == len(files_of(folder)) - 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_named(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(name for name, content in files_of(folder).items() if content)))
    path, content = folder / name, (folder / name).read_bytes()
    place, mask = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
    try:
        problems = archive.verify(folder).problems
    finally:
        path.write_bytes(content)
    if name != archive.SUMS:
        assert problems == (f"damaged: {name} (not what was exported)",)
    else:  # a checksum, a name or a line of the list itself
        assert problems


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_removed_and_any_added_file_is_named(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(files_of(folder))))
    removed = (folder / name).read_bytes()
    added = (
        folder
        / data.draw(st.sampled_from(["", "runs/", f"tables/{NAME}/"]))
        / data.draw(st.from_regex(r"[a-z]{9}", fullmatch=True))
    )
    (folder / name).unlink()  # after the last draw, which may end the example
    added.write_bytes(b"")
    try:
        problems = archive.verify(folder).problems
    finally:
        (folder / name).write_bytes(removed)
        added.unlink()
    assert f"missing: {name}" in problems
    assert f"extra: {added.relative_to(folder).as_posix()}" in problems


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_of_the_archive_never_passes_as_other_contents(
    made: Path, folder: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """A few bytes of a zip file mean nothing; all others are found."""
    content = made.read_bytes()
    directory = int.from_bytes(content[-6:-2], "little")  # where the zip file lists its members, the delicate part
    low = data.draw(st.sampled_from([0, directory]))
    place, mask = data.draw(st.integers(low, len(content) - 1)), data.draw(st.integers(1, 255))
    tampered, out = tmp_path / "tampered.zip", tmp_path / "out"
    tampered.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
    if not archive.verify(tampered).problems:
        archive.unpack(tampered, out)
        found = {name: digest(content) for name, content in files_of(out).items()}
        shutil.rmtree(out)
        assert found == {name: digest(content) for name, content in files_of(folder).items()}
    else:
        with pytest.raises(HicmaeError):
            archive.unpack(tampered, out)
        assert not out.exists()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.floats(0, 0.999))
def test_an_archive_that_was_cut_off_is_damaged(made: Path, tmp_path: Path, keep: float) -> None:
    content = made.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: int(keep * len(content))])
    assert archive.verify(tmp_path / "cut.zip").problems


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (f"{NAME}/../../evil", stat.S_IFREG),
        ("/tmp/evil", stat.S_IFREG),
        (f"{NAME}/runs/..\\evil", stat.S_IFREG),
        ("C:/evil", stat.S_IFREG),
        (f"{NAME}/runs/link", stat.S_IFLNK),
        (f"{NAME}/runs/pipe", stat.S_IFIFO),
        (f"{NAME}/runs/folder/", stat.S_IFDIR),
        ("beside", stat.S_IFREG),
        (f"{NAME}/{archive.ABOUT}", stat.S_IFREG),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_lead_elsewhere_links_and_doubles_are_refused(made: Path, tmp_path: Path, name: str, mode: int) -> None:
    bad = tmp_path / "in" / "bad.zip"
    bad.parent.mkdir()
    shutil.copy(made, bad)
    with zipfile.ZipFile(bad, "a") as opened:
        info = zipfile.ZipInfo(name)
        info.external_attr = (mode | 0o644) << 16
        opened.writestr(info, b"/etc/passwd" if mode == stat.S_IFLNK else b"evil")
    problems = archive.verify(bad).problems
    assert len(problems) == 1 and problems[0].startswith(("refused: ", "extra: ")) and Path(name).name in problems[0]
    with pytest.raises(HicmaeError, match="not as it was exported"):
        archive.unpack(bad, tmp_path / "in" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "bad.zip"]


def test_links_in_a_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / NAME
    shutil.copytree(folder, copy)
    (copy / archive.ABOUT).rename(tmp_path / "moved")
    (copy / archive.ABOUT).symlink_to(tmp_path / "moved")
    (copy / "runs" / "outside").symlink_to(tmp_path)
    assert set(archive.verify(copy).problems) == {
        f"refused: {archive.ABOUT} (a link or a special file)",
        "refused: runs/outside (a link or a special file)",
        f"missing: {archive.ABOUT}",
    }


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_other_files_are_no_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    assert archive.verify(tmp_path / "x.zip").problems
    with pytest.raises(UsageError, match="no such archive"):
        archive.verify(tmp_path / "absent.zip")


# The same tables elsewhere


def report(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`hicmae report` in a folder and a home of its own."""
    place.mkdir(parents=True)
    homes = {name: str(place / "home") for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    environment = {**os.environ, **homes, "PYTHONPATH": str(CHECKOUT), "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments.cli", "report", "--no-pdf", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_every_table_is_rebuilt_elsewhere_bit_for_bit(study: StudyOnDisk, made: Path, tmp_path: Path) -> None:
    """Another folder and home, without the list of files that a corpus was made from, and with damaged records in the study."""
    here = tmp_path / "here"
    build_report(study.root, here, NAME, pdf=False)
    own = study.root.parent / "own.txt"
    own.rename(own.with_name("gone"))
    try:
        ended = report(tmp_path / "b" / "c", "--from", str(made), "--out", "build")
    finally:
        own.with_name("gone").rename(own)
    assert ended.returncode == 0, ended.stderr
    there = tmp_path / "b" / "c" / "build"
    tables = {path.name for path in (here / NAME).iterdir() if path.suffix in TABLES}
    assert len(tables) >= 7 and "provenance.json" in tables
    for name in tables:
        assert (there / NAME / name).read_bytes() == (here / NAME / name).read_bytes(), name
    assert f"all {len(tables)} files are those of the archive, bit for bit" in ended.stdout
    assert "predictions.parquet: unreadable" in ended.stderr and "config.json: unreadable" in ended.stderr


def test_a_damaged_archive_gives_no_report(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / NAME
    shutil.copytree(folder, copy)
    (copy / archive.ABOUT).unlink()
    from experiments.cli import app

    ended = CliRunner().invoke(app, ["report", "--from", str(copy), "--out", str(tmp_path / "out"), "--no-pdf"])
    assert ended.exit_code != 0 and f"missing: {archive.ABOUT}" in str(ended.exception)
    assert not (tmp_path / "out").exists()


def test_tables_that_came_out_otherwise_are_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / NAME
    shutil.copytree(folder, copy)
    table = copy / "tables" / NAME / "provenance.json"
    table.write_text(table.read_text() + "\n")
    sums = (copy / archive.SUMS).read_text().splitlines()
    own = f"tables/{NAME}/provenance.json"
    sums = [f"{digest(table.read_bytes())}  {own}" if line.endswith(own) else line for line in sums]
    (copy / archive.SUMS).write_text("\n".join([*sums, ""]))
    from experiments.cli import app

    ended = CliRunner().invoke(app, ["report", "--from", str(copy), "--out", str(tmp_path / "out"), "--no-pdf"])
    assert ended.exit_code != 0 and "1 of " in str(ended.exception) and "provenance.json: not as exported" in ended.output


def test_the_commands_export_and_verify(study: StudyOnDisk, tmp_path: Path) -> None:
    from experiments.cli import app

    wanted = ["export", NAME, "--runs", str(study.root), "-o", str(tmp_path)]
    made = CliRunner().invoke(app, wanted)
    assert made.exit_code == 0 and f"{NAME}.zip" in made.output and "is not complete" in made.output
    checked = CliRunner().invoke(app, ["verify", str(tmp_path / f"{NAME}.zip")])
    assert checked.exit_code == 0 and "files are as they were exported" in checked.output
    (tmp_path / f"{NAME}.zip").write_bytes(b"")
    broken = CliRunner().invoke(app, ["verify", str(tmp_path / f"{NAME}.zip")])
    assert isinstance(broken.exception, HicmaeError) and broken.exception.exit_code == 1
    unknown = CliRunner().invoke(app, ["export", "a_studi_smoke", "--runs", str(study.root)])
    assert isinstance(unknown.exception, UsageError) and NAME in str(unknown.exception)
    other = CliRunner().invoke(app, ["export", NAME, "--runs", str(study.root), "-o", str(tmp_path / "x.tar.gz")])
    assert isinstance(other.exception, UsageError) and "x.zip" in str(other.exception)
