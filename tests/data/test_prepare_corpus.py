"""Preparing whole corpora: what is written, what is reported, and going on after whatever interrupts it."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import typer
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

from experiments.cli_prepare import prepare_command
from hicmae.data import clips, corpora
from hicmae.data.prepare.clip import Settings, check_id
from hicmae.data.prepare.faces import detector
from hicmae.data.prepare.pipeline import Summary, folder_name, lock_of, prepare, read_journal
from hicmae.data.synthetic.clip import Take, pictures, sound
from hicmae.data.synthetic.write import write_media
from hicmae.errors import HicmaeError, UsageError

pytestmark = pytest.mark.xdist_group("prepare")  # its fixtures are made once

SETTINGS = Settings(size_px=64)
SIDE, PLACES = 160, 8
LONG, HELD = 12, "clip 7 ü"
NOISE = np.random.default_rng(0).integers(0, 256, (25, SIDE, SIDE, 3), dtype=np.uint8)


@cache
def portrait() -> clips.Frames:
    """The drawn face (96, 96, 3) that the detector is surest of, wherever it is placed."""
    drawn = [pictures(Take(0, speaker, 0, 0, valence, 0.04, 96))[0] for speaker in range(12) for valence in (0, 1)]
    scores = [min(_score(_placed(picture, take)) for take in range(PLACES)) for picture in drawn]
    assert max(scores) > 0.97, "no drawn face looks like one to the detector"
    return drawn[int(np.argmax(scores))]


def _score(frame: clips.Frames) -> float:
    return max((face.score for face in detector().faces(frame)), default=0.0)


def _placed(picture: clips.Frames, take: int) -> clips.Frames:
    before = 26 + take % PLACES
    return np.pad(picture, ((before, SIDE - 96 - before), (before, SIDE - 96 - before), (0, 0)), constant_values=128)


@cache
def person(take: int) -> clips.Frames:
    """A second of that face, at rest, somewhere else in every take: (25, SIDE, SIDE, 3)."""
    return np.repeat(_placed(portrait(), take)[None], 25, axis=0)


@cache
def voice(take: int) -> np.ndarray[Any, Any]:
    return sound(Take(0, 0, take, take % 2, 0, 1.0))


def film(path: Path, take: int = 0, frames: clips.Frames | None = None, silent: bool = False) -> Path:
    return write_media(path, person(take) if frames is None else frames, None if silent else voice(take))


def corpus_of(folder: Path, names: Iterable[str], **columns: Iterable[str]) -> str:
    """A `csv:` corpus of the files `names`; ids are given, or the names' stems."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"video": list(names), **{name: list(values) for name, values in columns.items()}}
    with (folder / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return f"csv:{folder / 'mine.csv'}"


def many(folder: Path, count: int = 8) -> str:
    names = [f"clip {number} ü.mp4" for number in range(count)]
    for number, name in enumerate(names):
        film(folder / name, number)
    return corpus_of(folder, names, label=["calm", "wild"] * (count // 2), fold=["1", "2"] * (count // 2))


def go(name: str, out: Path, settings: Settings = SETTINGS, **options: object) -> Summary:
    return prepare(name, out, settings, jobs=options.pop("jobs", 1), **options)  # type: ignore[arg-type]


def samples_of(name: str) -> list[corpora.Sample]:
    corpus = corpora.get(name)
    assert corpus.root is not None
    return corpus.samples(corpus.root)


def media(folder: Path) -> dict[str, bytes]:
    """All prepared files and tables with their bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".prepare" not in path.parts
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return many(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(mine: str, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """An uninterrupted preparation; what interrupted ones must come to."""
    return go(mine, tmp_path_factory.mktemp("whole"), jobs=2)


def test_a_prepared_corpus_is_a_corpus_with_the_same_ids_labels_folds_and_groups(mine: str, whole: Summary) -> None:
    prepared = corpora.get(f"csv:{whole.manifest}")
    before, after = samples_of(mine), samples_of(prepared.name)
    assert prepared.classes == ("calm", "wild") and prepared.folds == (1, 2)
    facts = [[(s.sample_id, s.label, s.test_folds, s.group) for s in samples] for samples in (before, after)]
    assert facts[0] == facts[1] and len(after) == 8
    assert {s.video for s in after} == set((whole.folder / "faces").iterdir())
    assert {s.audio for s in after} == set((whole.folder / "sound").iterdir())


def test_crops_have_the_size_rate_and_length_of_the_clip_and_its_sound(mine: str, whole: Summary) -> None:
    for sample in samples_of(mine):
        facts = clips.probe(whole.folder / "faces" / f"{sample.sample_id}.mp4")
        assert (facts.width, facts.height, facts.fps, facts.frames) == (64, 64, 25.0, 25)
        with wave.open(str(whole.folder / "sound" / f"{sample.sample_id}.wav")) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        assert sample.audio is not None
        np.testing.assert_array_equal(samples, clips.read_sound(sample.audio))


def test_faces_csv_says_what_was_found(whole: Summary) -> None:
    rows = rows_of(whole.folder / "faces.csv")
    assert [row["sample_id"] for row in rows] == sorted(f"clip {n} ü" for n in range(8))
    assert all(row["detection_rate"] == "1.000" and row["frames"] == "25" and row["examined"] == "6" for row in rows)


def test_a_second_call_does_nothing_and_one_after_a_loss_does_what_is_lost(mine: str, tmp_path: Path) -> None:
    first = go(mine, tmp_path)
    files = media(first.folder)
    again = go(mine, tmp_path)
    assert (again.done_before, again.clips) == (8, 8)
    (first.folder / "faces" / "clip 3 ü.mp4").unlink()
    (first.folder / "sound" / "clip 5 ü.wav").unlink()
    assert go(mine, tmp_path).done_before == 6
    assert media(first.folder) == files


def test_a_changed_source_is_prepared_again_and_a_broken_one_leaves_nothing_old(tmp_path: Path) -> None:
    name = many(tmp_path / "in", 2)
    folder = go(name, tmp_path).folder
    before = media(folder)
    film(tmp_path / "in" / "clip 0 ü.mp4", 6)
    assert go(name, tmp_path).done_before == 1
    after = media(folder)
    changed = {path for path in after if after[path] != before[path]} - {"faces.csv"}
    assert changed == {"faces/clip 0 ü.mp4", "sound/clip 0 ü.wav"}
    film(tmp_path / "in" / "clip 0 ü.mp4", 6, NOISE)
    assert "no face" in go(name, tmp_path, on_error="skip").problems["clip 0 ü"].reason
    assert set(media(folder)) == {"faces/clip 1 ü.mp4", "sound/clip 1 ü.wav", "faces.csv", "prepared.csv"}


def test_a_folder_holds_clips_of_one_setting(mine: str, whole: Summary) -> None:
    with pytest.raises(UsageError, match="size_px 64 instead of 96; use the same options"):
        go(mine, whole.folder.parent, Settings(size_px=96))


def test_a_folder_holds_clips_of_one_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [corpus_of(tmp_path / folder, ["a.wav"]) for folder in ("first", "second")]
    for take, name in enumerate(("first", "second")):
        write_media(tmp_path / name / "a.wav", None, voice(take))
    heard = Settings(modality="A")
    folder = go(names[0], tmp_path, heard).folder
    files = media(folder)
    message = "mine holds clips made with corpus 'csv:.*first/mine.csv' instead of 'csv:.*second/mine.csv'; .* only moved, name"
    with pytest.raises(UsageError, match=message):
        go(names[1], tmp_path, heard)
    assert media(folder) == files
    monkeypatch.chdir(tmp_path / "first")
    assert go("csv:../first/mine.csv", tmp_path, heard).done_before == 1
    note = folder / ".prepare" / "settings.json"  # as it was before notes named the corpus
    note.write_text(json.dumps({key: value for key, value in json.loads(note.read_text()).items() if key != "corpus"}))
    assert go(names[0], tmp_path, heard).done_before == 1


def test_folders_are_called_after_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.v1").mkdir()
    (tmp_path / "mine.v1" / "table.v2.csv").touch()
    monkeypatch.chdir(tmp_path / "mine.v1")
    places = ("folder:.", f"folder:{tmp_path}/mine.v1/", "csv:table.v2.csv", "list:..", "folder:/", "crema_d")
    assert [folder_name(place) for place in places] == ["mine.v1", "mine.v1", "table.v2", tmp_path.name, "folder", "crema_d"]


def test_a_clip_without_a_face_is_reported_and_never_replaced(tmp_path: Path) -> None:
    film(tmp_path / "in" / "person.mp4")
    film(tmp_path / "in" / "nobody.mp4", frames=NOISE)
    name = corpus_of(tmp_path / "in", ["person.mp4", "nobody.mp4"])
    summary = go(name, tmp_path)
    assert summary.manifest is None and not (summary.folder / "prepared.csv").exists()
    assert summary.problems["nobody"].reason == "no face in any of 6 examined frames"
    assert summary.problems["nobody"].path == str(tmp_path / "in" / "nobody.mp4")
    assert [row["reason"] != "" for row in rows_of(summary.folder / "faces.csv")] == [True, False]
    skipped = go(name, tmp_path, on_error="skip")
    assert skipped.done_before == 2 and skipped.manifest is not None
    assert [row["sample_id"] for row in rows_of(skipped.manifest)] == ["person"]
    assert not list(summary.folder.rglob("nobody*"))


def test_frames_without_a_face_are_bridged(tmp_path: Path) -> None:
    frames = person(0).copy()
    frames[8:17] = NOISE[8:17]
    film(tmp_path / "in" / "hidden.mp4", frames=frames)
    summary = go(corpus_of(tmp_path / "in", ["hidden.mp4"]), tmp_path)
    found = summary.found["hidden"]
    assert (found.with_face, found.examined) == (4, 6) and found.longest_gap_s == pytest.approx(14 / 25)
    assert clips.probe(summary.folder / "faces" / "hidden.mp4").frames == 25


def test_every_kind_of_bad_clip_gives_its_own_line(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    film(folder / "good.mp4")
    (folder / "cut off.mp4").write_bytes((folder / "good.mp4").read_bytes()[:5000])
    (folder / "empty.mp4").touch()
    film(folder / "silent.mp4", silent=True)
    write_media(folder / "sound alone.wav", None, voice(0))
    names = ["good.mp4", "cut off.mp4", "empty.mp4", "silent.mp4", "sound alone.wav", "absent.mp4"]
    problems = go(corpus_of(folder, names), tmp_path, on_error="skip").problems
    words = {
        "cut off": "cut off, damaged",
        "empty": "empty file",
        "silent": "no sound stream",
        "sound alone": "no video stream",
        "absent": "missing",
    }
    assert {name: word in problems[name].reason for name, word in words.items()} == dict.fromkeys(words, True)
    assert all("\n" not in found.reason and Path(found.path).stem == name for name, found in problems.items())


def test_sound_alone_and_faces_alone_need_only_their_own_stream(tmp_path: Path) -> None:
    film(tmp_path / "in" / "silent.mp4", silent=True)
    faces = go(corpus_of(tmp_path / "in", ["silent.mp4"]), tmp_path / "v", Settings(modality="V"))
    assert faces.manifest and rows_of(faces.manifest)[0]["audio"] == ""
    write_media(tmp_path / "voice" / "a.wav", None, voice(0))
    heard = go(corpus_of(tmp_path / "voice", ["a.wav"]), tmp_path / "a", Settings(modality="A"))
    assert heard.manifest and rows_of(heard.manifest)[0]["video"] == "" and (heard.folder / "sound" / "a.wav").exists()


def test_one_frame_and_odd_sizes_are_clips_too(tmp_path: Path) -> None:
    picture = np.pad(person(0)[:1], ((0, 0), (20, 21), (50, 51), (0, 0)), mode="edge")  # 201 x 261
    folder = tmp_path / "in" / "still"
    folder.mkdir(parents=True)
    Image.fromarray(picture[0]).save(folder / "1.png")
    summary = go(corpus_of(tmp_path / "in", ["still"]), tmp_path, Settings(modality="V"))
    assert summary.found["still"].frames == 1 and not summary.problems
    assert clips.probe(summary.folder / "faces" / "still").width == 160


def test_a_folder_of_pictures_becomes_one_and_aligned_ones_stay_as_they_are(tmp_path: Path) -> None:
    frames = person(0)[:6]
    for folder, name in (("plain", "{}.png"), ("a_aligned", "frame_det_00_{:06d}.bmp"), ("b", "frame_det_00_{:06d}.bmp")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for number, frame in enumerate(frames, start=1):
            Image.fromarray(frame).save(tmp_path / "in" / folder / name.format(number))
    name = corpus_of(tmp_path / "in", ["plain", "a_aligned", "b"])
    summary = go(name, tmp_path, Settings(size_px=64, modality="V"))
    assert summary.manifest is not None
    found = {
        sample.sample_id: clips.open_frames(sample.video) for sample in samples_of(f"csv:{summary.manifest}") if sample.video
    }
    assert {name: len(reader) for name, reader in found.items()} == {"plain": 6, "a": 6, "b": 6}
    assert found["plain"].read([0])[0].shape == (64, 64, 3)
    for name in "ab":
        np.testing.assert_array_equal(found[name].read(range(6)), frames)
    assert summary.found["a"].examined == 0 and summary.found["plain"].examined == 2


def test_pictures_instead_of_videos_when_asked_for(tmp_path: Path) -> None:
    film(tmp_path / "in" / "x.mp4")
    summary = go(corpus_of(tmp_path / "in", ["x.mp4"]), tmp_path, Settings(size_px=64, format="pictures"))
    assert len(clips.picture_files(summary.folder / "faces" / "x")) == 25


@pytest.mark.parametrize("bad", ["../x", "/etc/x", "a/../../x", "a//x", ".", "", "a\\..\\x", "a\nb", "a/"])
def test_ids_that_lead_out_of_the_folder_are_refused_before_anything_is_written(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UsageError, match="would lead out of the folder"):
        check_id(bad)
    if bad.isprintable() and bad:  # a table cannot hold the others
        film(tmp_path / "in" / "x.mp4")
        with pytest.raises(UsageError, match="would lead out of the folder"):
            go(corpus_of(tmp_path / "in", ["x.mp4"], sample_id=[bad]), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_ids_may_name_folders_and_be_of_any_script(tmp_path: Path) -> None:
    film(tmp_path / "in" / "x.mp4")
    summary = go(corpus_of(tmp_path / "in", ["x.mp4"], sample_id=["id1/Ωmega clip/00 1.mp4"]), tmp_path)
    assert (summary.folder / "faces" / "id1" / "Ωmega clip" / "00 1.mp4.mp4").is_file() and not summary.problems


def test_only_the_first_clips_and_then_the_others(mine: str, whole: Summary, tmp_path: Path) -> None:
    trial = go(mine, tmp_path, limit=3)
    assert trial.clips == 3 and trial.manifest and len(rows_of(trial.manifest)) == 3
    go(mine, tmp_path)
    assert media(trial.folder) == media(whole.folder)
    go(mine, tmp_path, limit=1)
    assert len(rows_of(trial.manifest)) == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size_px": 161}, "--size 161: must be even"),
        ({"margin": -1.0}, "--margin -1.0"),
        ({"every": 0}, "--every 0"),
        ({"format": "mp5"}, "unknown --format 'mp5'; valid, nearest first: mp4, pictures"),
        ({"modality": "X"}, "unknown --modality 'X'"),
    ],
)
def test_wrong_options_are_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**values)  # type: ignore[arg-type]


def test_crops_written_into_a_published_corpus_are_used_by_it_and_are_not_its_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "crema_d"
    for number, emotion in enumerate(("ANG", "HAP")):
        film(root / "VideoFlash" / f"1001_DFA_{emotion}_XX.flv", number)
        write_media(root / "AudioWAV" / f"1001_DFA_{emotion}_XX.wav", None, voice(number))
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path))
    go("crema_d", tmp_path)
    samples = corpora.get("crema_d").samples(root)
    assert [sample.video and sample.video.parent.name for sample in samples] == ["faces", "faces"]
    assert go("crema_d", tmp_path).done_before == 2


# --- interruptions ------------------------------------------------------------------------------------------------------


def start(name: str, out: Path, *options: str, limit_bytes: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    command = [sys.executable, "-m", "experiments.cli", "data", "prepare", name, "--out", str(out), "--size", "64", *options]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if limit_bytes is not None:  # a measurement of coverage could not be written either, and would say so at the end
        streams["env"] = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    return subprocess.Popen(command, text=True, preexec_fn=limit, start_new_session=True, **streams)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


def interrupted(name: str, out: Path, number: signal.Signals, group_s: Sequence[float] = ()) -> subprocess.Popen[str]:
    """A preparation that got the signal when its first clips were done; all its processes have ended.

    With `group_s` all of them got it, again and again after these seconds.

    One clip is in other hands all the time, so it cannot have come to its end before.
    """
    held = lock_of(out / "mine", HELD)
    held.parent.mkdir(parents=True)
    with FileLock(held):
        process = start(name, out, "--jobs", "2")
        wait_for(lambda: len(list(out.glob("mine/faces/*.mp4"))) >= 2, process)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(family) >= 3
        if not group_s:
            os.kill(process.pid, number)
        for pause_s in group_s:
            time.sleep(pause_s)
            os.killpg(process.pid, number)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert not (out / "mine" / "faces" / f"{HELD}.mp4").exists()
    return process


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("long")
    return many(folder, LONG)


@pytest.fixture(scope="module")
def long_whole(long: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return media(go(long, tmp_path_factory.mktemp("long whole"), jobs=2).folder)


@pytest.mark.slow
def test_after_a_kill_the_next_call_comes_to_the_same_files(long: str, long_whole: dict[str, bytes], tmp_path: Path) -> None:
    assert interrupted(long, tmp_path, signal.SIGKILL).returncode == -signal.SIGKILL
    left = [path for path in (tmp_path / "mine" / "faces").iterdir() if path.name[0] != "."]
    assert all(path.read_bytes() == long_whole[f"faces/{path.name}"] for path in left)
    assert go(long, tmp_path, jobs=2).done_before >= 1
    assert media(tmp_path / "mine") == long_whole


@pytest.mark.slow
def test_control_c_finishes_the_clips_in_hand_and_leaves_no_half_files(
    long: str, long_whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert interrupted(long, tmp_path, signal.SIGINT, group_s=(0, 0.02)).returncode == 130
    written = media(tmp_path / "mine")
    assert all(long_whole[path] == content for path, content in written.items())
    assert {Path(path).stem for path in written} == set(read_journal(tmp_path / "mine"))
    go(long, tmp_path, jobs=2)
    assert media(tmp_path / "mine") == long_whole


@pytest.mark.slow
def test_two_calls_at_once_share_the_work_and_come_to_the_same_files(
    long: str, long_whole: dict[str, bytes], tmp_path: Path
) -> None:
    calls = [start(long, tmp_path, "--jobs", "1") for _ in range(2)]
    assert [(call.communicate(timeout=300), call.returncode)[1] for call in calls] == [0, 0]
    assert media(tmp_path / "mine") == long_whole
    journals = list((tmp_path / "mine" / ".prepare" / "journal").iterdir())
    lines = [json.loads(line)["sample_id"] for journal in journals for line in journal.read_text().splitlines()]
    assert len(set(lines)) == LONG and len(lines) < LONG + 6  # a clip twice only where both looked at the same moment


@pytest.mark.slow
def test_a_killed_worker_is_one_line_and_not_a_wait_without_end(long: str, tmp_path: Path) -> None:
    process = start(long, tmp_path, "--jobs", "2")
    wait_for(lambda: len(list(tmp_path.glob("mine/faces/*.mp4"))) >= 2, process)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    workers[-1].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "error: a worker was killed" in errors.splitlines()[-1]


def test_a_disk_that_takes_no_more_is_one_line(mine: str, tmp_path: Path) -> None:
    process = start(mine, tmp_path, "--jobs", "1", limit_bytes=3000)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: ") and "File too large" in errors.splitlines()[-1]
    assert list(tmp_path.rglob("*.part")) == []


def test_a_folder_that_cannot_be_written_is_one_line(mine: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HicmaeError, match="Not a directory; mend that and run again"):
        go(mine, tmp_path / "file")


# --- the command ---------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(prepare_command)
    return CliRunner().invoke(app, arguments)


def test_the_command_prints_a_summary_as_text_and_as_json(mine: str, whole: Summary) -> None:
    arguments = [mine, "--out", str(whole.folder.parent), "--size", "64"]
    text = command(*arguments)
    assert text.exit_code == 0, text.output
    assert f"train from it as corpus csv:{whole.manifest}" in text.stdout
    values = json.loads(command(*arguments, "--json").stdout)
    assert (values["clips"], values["done_before"], values["problems"]) == (8, 8, [])
    assert values["mean_detection_rate"] == 1.0 and values["manifest"] == str(whole.manifest)


def test_the_command_fails_and_names_the_clips_that_cannot_be_used(tmp_path: Path) -> None:
    film(tmp_path / "in" / "person.mp4")
    film(tmp_path / "in" / "nobody.mp4", frames=NOISE)
    name = corpus_of(tmp_path / "in", ["person.mp4", "nobody.mp4"])
    failed = command(name, "--out", str(tmp_path), "--jobs", "1")
    assert isinstance(failed.exception, HicmaeError) and "1 of 2 clips cannot be used" in str(failed.exception)
    assert "nobody.mp4: no face in any of 6 examined frames" in failed.stdout
    assert command(name, "--out", str(tmp_path), "--on-error", "skip").exit_code == 0
