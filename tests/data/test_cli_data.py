"""`hicmae data`: what it prints, what it writes, and how it exits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from media_files import grey_frames, tone, write_clip, write_table
from PIL import Image

from experiments import cli
from hicmae.data import corpora
from hicmae.data.synthetic import LAYOUTS, write_layout


def hicmae(*arguments: object) -> int:
    corpora.get.cache_clear()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_list_says_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ravdess").mkdir()
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path))
    assert hicmae("data", "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert tuple(rows) == corpora.names()
    assert [name for name, row in rows.items() if row["there"]] == ["ravdess"]
    assert (rows["ravdess"]["outputs"], rows["ravdess"]["folds"], rows["ravdess"]["metric"]) == (8, 6, "WAR")
    assert hicmae("data", "list") == 0
    table = capsys.readouterr().out
    assert "not here" in table
    assert f"  ravdess     {rows['ravdess']['licence']}\n" in table


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"synthetic"}))
def test_check_passes_on_every_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_layout(name, tmp_path / name, seconds=0.4, size_px=32)
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path))
    assert hicmae("data", "check", name, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["problems"] == []
    assert answer["facts"]["samples"] >= 12
    assert all(answer["facts"]["test_clips"].values())
    assert all(answer["facts"]["classes"].values())


def test_check_lists_every_problem_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "data", clips=6, frames=8)
    (tmp_path / "data/clips/clip01.mp4").unlink()
    write_clip(tmp_path / "data/clips/clip02.mp4", grey_frames(8))
    table.write_text(table.read_text().replace("p0,1", "p1,1", 1))
    assert hicmae("data", "check", f"csv:{table}", "-o", tmp_path / "bad.csv") == 1
    output = capsys.readouterr()
    assert "clip02.mp4: no sound stream" in output.out.replace("\n", "")
    assert "problems, all in" in output.err
    with (tmp_path / "bad.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sample_id"], row["reason"]) for row in rows[:2]] == [("clip01", "missing"), ("clip02", "no sound stream")]
    assert rows[2]["reason"] == "group is in training and in test of the same fold"


def test_check_shows_durations_rates_and_files_of_the_same_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path, clips=6, frames=10, folds=3)
    write_clip(tmp_path / "clips/clip05.mp4", grey_frames(50), tone(2, 44100), 44100)
    (tmp_path / "clips/clip03.mp4").write_bytes((tmp_path / "clips/clip00.mp4").read_bytes())
    assert hicmae("data", "check", f"csv:{table}", "--json") == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert facts["video_s"] == pytest.approx([0.4, 0.4, 2.0])
    assert facts["sound_s"] == pytest.approx([0.4, 0.4, 2.0], abs=0.1)
    assert facts["frame_rates"] == {"25": 6}
    assert facts["sample_rates"] == {"16000": 5, "44100": 1}
    assert facts["same_content"] == [[str(tmp_path / f"clips/clip0{number}.mp4") for number in (0, 3)]]
    assert hicmae("data", "check", f"csv:{table}") == 0
    output = capsys.readouterr().out
    assert "0.40, 0.40, 2.00" in output
    assert "16000 (5), 44100 (1)" in output
    assert "warning, the same content" in output


@pytest.mark.recordings
def test_check_passes_on_real_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recordings: Path
) -> None:
    clips = sorted((recordings / "grid").glob("*.mp4"))
    table = tmp_path / "grid.csv"
    table.write_text("\n".join(["video,label", *(f"grid/{clip.name},{number % 2}" for number, clip in enumerate(clips))]) + "\n")
    for name, folder in (("grid", "grid"), ("ravdess", "ravdess_audio")):
        (tmp_path / name).symlink_to(recordings / folder)
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path))
    facts = {}
    for corpus in (f"folder:{recordings / 'voxceleb2'}", f"csv:{table}", f"folder:{recordings / 'public_speech'}", "ravdess"):
        assert hicmae("data", "check", corpus, "--json") == 0
        facts[corpus.rpartition("/")[2]] = json.loads(capsys.readouterr().out)["facts"]
    assert {name: found["samples"] for name, found in facts.items()} == {
        "voxceleb2": 14,
        "grid.csv": 11,
        "public_speech": 2,
        "ravdess": 192,
    }
    assert facts["grid.csv"]["frame_rates"] == {"25": 11}
    assert facts["ravdess"]["without_video"] == 192
    assert facts["ravdess"]["classes"] == dict.fromkeys(corpora.get("ravdess").classes, 24)
    assert hicmae("data", "check", "ravdess") == 0
    assert "for information: 192 clips are here, 1440 are published (1248 fewer)" in capsys.readouterr().out


def test_unknown_corpora_and_absent_data_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert hicmae("data", "check", "cremad") == 2
    assert "unknown corpus 'cremad'; valid, nearest first: crema_d" in capsys.readouterr().err.replace("\n", " ")
    assert hicmae("data", "check", "crema_d") == 2
    assert "HICMAE_DATA/crema_d" in capsys.readouterr().err
    assert hicmae("data", "export", "crema_d", "--format", "lists") == 2


def test_fingerprint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path, clips=2, frames=4)
    assert hicmae("data", "fingerprint", f"csv:{table}") == 0
    first = capsys.readouterr().out
    assert len(first.strip()) == 32
    assert hicmae("data", "fingerprint", f"csv:{table}") == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("format_", ["list", "csv"])
def test_an_exported_corpus_reads_as_the_same_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    table = write_table(tmp_path / "mine with space", clips=6, frames=4)
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path))
    before = corpora.get(f"csv:{table}").samples(table.parent)
    assert hicmae("data", "export", f"csv:{table}", "--out", tmp_path / "lists", "--format", format_) == 0
    written = capsys.readouterr().out.split("\n")[:-1]
    corpus = corpora.get(f"list:{tmp_path / 'lists'}" if format_ == "list" else f"csv:{written[0]}")
    assert corpus.root is not None
    after = corpus.samples(corpus.root)
    what = [[(s.sample_id, s.video, s.audio, s.label, s.test_folds, s.task_id) for s in samples] for samples in (before, after)]
    assert what[0] == what[1]
    assert corpus.classes == (("0", "1") if format_ == "list" else ("calm", "loud"))
    assert len(written) == (4 if format_ == "list" else 1)


def test_an_export_for_pretraining_keeps_sound_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ('a "b" c', "d"):
        write_clip(tmp_path / f"mine/{name}.mp4", grey_frames(8))
        write_clip(tmp_path / f"mine/{name}.m4a", None, tone(0.4, 16000))
    write_clip(tmp_path / "mine/both.mp4", grey_frames(8), tone(0.4, 16000))
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path))
    assert hicmae("data", "export", f"folder:{tmp_path / 'mine'}", "--format", "list", "-o", tmp_path / "lists") == 0
    before = corpora.get(f"folder:{tmp_path / 'mine'}").samples(tmp_path)
    for name in ("lists", "lists/train.csv"):
        assert hicmae("data", "check", f"list:{tmp_path / name}") == 0
        after = corpora.get(f"list:{tmp_path / name}")
        assert (after.task, after.samples(tmp_path)) == ("pretraining", before)
    assert "3 clips, no problem found" in capsys.readouterr().out


def test_an_export_that_cannot_be_is_one_line_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sound without picture has no line in the authors' format; it is in the test part, which is written last."""
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", grey_frames(8), tone(0.4, 16000))
    table = tmp_path / "t.csv"
    table.write_text("video,audio,label,fold\na.mp4,,0,\n,b.mp4,1,1\n")
    assert hicmae("data", "export", f"csv:{table}", "-o", tmp_path / "out") == 2
    assert capsys.readouterr().err == "error: b: the list format needs a video and a sound file; use --format csv\n"
    assert not (tmp_path / "out").exists()
    assert hicmae("data", "export", f"csv:{table}", "--format", "csv", "-o", table) == 2
    assert capsys.readouterr().err == f"error: {table}: is a file; --out names the folder of the lists\n"
    assert hicmae("data", "export", f"csv:{table}", "--format", "csv", "-o", table / "below") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_show_draws_what_the_model_gets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"both": (grey_frames(30), tone(2, 16000)), "silent": (grey_frames(5), None), "blind": (None, tone(1, 8000))}
    for name, (frames, sound) in parts.items():
        clip = write_clip(tmp_path / f"{name}.mp4", frames, sound, 8000 if name == "blind" else 16000)
        assert hicmae("data", "show", clip, "-o", tmp_path / f"{name}.png") == 0
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width == 1200
    assert capsys.readouterr().out.splitlines()[-1].endswith("blind.png")
    assert hicmae("data", "show", tmp_path / "nowhere.mp4") == 1
    assert "nowhere.mp4: missing" in capsys.readouterr().err


def test_show_takes_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two dollar signs are no formula, and letters that the font lacks are no reason to complain."""
    clip = write_clip(tmp_path / r"a$\foo$b 感情.mp4", grey_frames(20), tone(1, 16000))
    assert hicmae("data", "show", clip, "-o", tmp_path / "plain") == 0
    answer = capsys.readouterr()
    assert answer.out.strip() == str(tmp_path / "plain.png")
    assert answer.err == ""
    assert Image.open(tmp_path / "plain.png").format == "PNG"


@pytest.mark.parametrize("output", ["clip.xyz", "."])
def test_show_writes_a_png_and_nothing_else(tmp_path: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "a.mp4", grey_frames(20), tone(1, 16000))
    assert hicmae("data", "show", clip, "-o", tmp_path / output) == 2
    assert "the picture is a PNG; give the name of a file" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "a.mp4", grey_frames(20), tone(1, 16000))
    assert hicmae("data", "show", clip, "-o", clip / "a.png") == 1
    assert capsys.readouterr().err.strip() in {f"error: {clip}: Not a directory", f"error: {clip}: File exists"}


@pytest.mark.slow
def test_bench_measures_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path, clips=3, frames=20)
    assert (
        hicmae("bench", "data", f"csv:{table}", "--px", 32, "--clips", 1000, "--seconds", 0.05, "-o", tmp_path / "bench.json")
        == 0
    )
    result = json.loads((tmp_path / "bench.json").read_text())
    assert all(case["per_s"] > 0 and case["samples"] > 0 for case in result["cases"])
    assert {case["name"] for case in result["cases"] if case["goal_per_s"]} == {
        "pre-training from the store",
        "fine-tuning from the store",
        "pre-training from the store, for a GPU",
        "fine-tuning from the store, for a GPU",
        "pre-training from files",
    }
