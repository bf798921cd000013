"""Every kind of clip and list that goes wrong in practice, through `hicmae data check` with real files.

What cannot be used gives one line that names the file and the reason; what is merely odd passes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from media_files import grey_frames, index_in_front, tone, write_clip

from experiments import cli
from hicmae.data import corpora

HEADER = "sample_id,video,audio,label,group,fold"


def cut_short(path: Path) -> None:
    data = write_clip(path, grey_frames(50), tone(2, 16000)).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def cut_short_behind_its_index(path: Path) -> None:
    """As a download that broke off: the index is at the front, so the file opens and says how long it was."""
    data = index_in_front(write_clip(path, grey_frames(50), tone(2, 16000))).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


UNUSABLE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated": ("cut.mp4", cut_short, "unreadable; the file is cut off, damaged or not a media file"),
    "truncated behind its index": ("broken_off.mp4", cut_short_behind_its_index, "frames cannot be decoded"),
    "video without sound": ("silent.mp4", lambda path: write_clip(path, grey_frames(8)), "no sound stream"),
    "sound without video": ("blind.mp4", lambda path: write_clip(path, None, tone(1, 16000)), "no video stream"),
    "zero bytes": ("empty.mp4", lambda path: path.touch(), "empty file"),
    "missing": ("gone.mp4", lambda path: None, "missing"),
}
ODD: dict[str, Callable[[Path], object]] = {
    "8kHz.mp4": lambda path: write_clip(path, grey_frames(25), tone(1, 8000), 8000),
    "stereo.mp4": lambda path: write_clip(path, grey_frames(25), tone(1, 16000), channels=2),
    "48kHz.mp4": lambda path: write_clip(path, grey_frames(25), tone(1, 48000), 48000),
    "variable.mp4": lambda path: write_clip(path, grey_frames(6), tone(1, 16000), times=[0, 1, 2, 10, 11, 30]),
    "one frame.mp4": lambda path: write_clip(path, grey_frames(1), tone(0.5, 16000)),
    "odd size.mp4": lambda path: write_clip(path, grey_frames(5, 63, 65), tone(0.5, 16000)),
    "Gefühl 感情 😀.mp4": lambda path: write_clip(path, grey_frames(5), tone(0.5, 16000)),
}


@pytest.fixture(autouse=True)
def fresh_registry() -> None:
    corpora.get.cache_clear()


def check(corpus: str, output: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "check", corpus, "-o", str(output), *options])
    return int(stop.value.code or 0)


def table_of(folder: Path, names: list[str], label: str = "calm") -> str:
    """A `csv:` corpus of the files; they and two good clips are in both folds' parts."""
    for number in (1, 2):
        write_clip(folder / f"good{number}.mp4", grey_frames(10), tone(0.5, 16000))
    lines = [f"good{number},good{number}.mp4,,{('calm', 'loud')[number - 1]},p{number},{number}" for number in (1, 2)]
    lines += [f"clip{number},{name},,{label},g{number},1" for number, name in enumerate(names)]
    (folder / "clips.csv").write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return f"csv:{folder / 'clips.csv'}"


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_clip_that_cannot_be_used_is_one_line(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, make, reason = UNUSABLE[kind]
    make(tmp_path / name)
    assert check(table_of(tmp_path, [name]), tmp_path / "bad.csv") == 1
    with (tmp_path / "bad.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["sample_id"], row["path"]) == ("clip0", str(tmp_path / name))
    assert row["reason"].startswith(reason)
    lines = [line for line in capsys.readouterr().out.splitlines() if str(tmp_path / name) in line]
    assert lines == [f"{tmp_path / name}: {row['reason']}"]


def test_a_stream_that_is_not_wanted_need_not_be_there(tmp_path: Path) -> None:
    write_clip(tmp_path / "silent.mp4", grey_frames(8))
    name = table_of(tmp_path, ["silent.mp4"])
    assert [check(name, tmp_path / "bad.csv", "--modality", wanted) for wanted in ("V", "A", "AV", "video")] == [0, 1, 1, 2]


def test_clips_that_are_merely_odd_pass(tmp_path: Path) -> None:
    for name, make in ODD.items():
        make(tmp_path / name)
    assert check(table_of(tmp_path, list(ODD)), tmp_path / "bad.csv") == 0


def test_zero_length_sound_is_one_line(tmp_path: Path) -> None:
    write_clip(tmp_path / "nothing.wav", None, tone(0.0, 16000))
    write_clip(tmp_path / "short.wav", None, tone(0.03, 16000))
    names = ["good.wav", "nothing.wav", "short.wav"]
    write_clip(tmp_path / "good.wav", None, tone(0.5, 16000))
    rows = [f"{name},,{name},calm,{name},{fold}" for name, fold in zip(names, (1, 2, 2), strict=True)]
    (tmp_path / "clips.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    assert check(f"csv:{tmp_path / 'clips.csv'}", tmp_path / "bad.csv") == 1
    with (tmp_path / "bad.csv").open() as file:
        found = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
    assert found.keys() == {"nothing.wav", "short.wav"}
    assert found["short.wav"] == "sound of 0.030 s is empty or too short (needs 0.064 s)"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("x,../elsewhere.mp4,,calm,p,1", "clips.csv, line 4: ../elsewhere.mp4 points outside the data folder"),
        ("good1,good2.mp4,,calm,p,1", "good2.mp4: the id good1 is there twice"),
        ("x,good2.mp4,,,p,1", "clips.csv, line 4: a line without label"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(
    tmp_path: Path, extra: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = table_of(tmp_path, [])
    with (tmp_path / "clips.csv").open("a") as file:
        file.write(extra + "\n")
    assert check(name, tmp_path / "bad.csv") == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_label_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "mer_multi"
    write_clip(root / "train/a.mp4", grey_frames(5), tone(0.5, 16000))
    for part, label in (("train", "blissful"), ("test1", "happy")):
        (root / f"{part}-label.csv").write_text(f"name,discrete\na,{label}\n")
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path))
    assert check("mer_multi", tmp_path / "bad.csv") == 1
    assert "train-label.csv: unknown label 'blissful'; known, nearest first:" in " ".join(capsys.readouterr().err.split())


def test_a_fold_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "ravdess/Actor_05/01-01-03-01-01-01-05.mp4", grey_frames(5), tone(0.5, 16000))
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path))
    assert check("ravdess", tmp_path / "bad.csv") == 1
    with (tmp_path / "bad.csv").open() as file:
        rows = [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    assert rows == [(f"fold {fold}", "no clip is in its test part") for fold in (1, 3, 4, 5, 6)]
