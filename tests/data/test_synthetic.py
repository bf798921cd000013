"""The generated corpus on disk: its table, its media, repeatability, resumption, bad input."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from hicmae.data.synthetic import CLASSES, generate
from hicmae.data.synthetic.clip import Take, pictures, sound
from hicmae.errors import HicmaeError, UsageError

TINY = {"speakers": 4, "clips_per_speaker": 4, "seconds": 0.6, "size_px": 64, "folds": 2}


def table(root: Path) -> list[dict[str, str]]:
    with (root / "clips.csv").open() as file:
        return list(csv.DictReader(file))


def digests(root: Path) -> dict[str, str]:
    files = [root / "clips.csv", *sorted(root.rglob("*.mp4"))]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def decoded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (T, H, W, 3) and sound (M,) of a file."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return frames, wave


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("tiny"), **TINY, processes=1)


def test_the_table_says_what_every_clip_is(tiny: Path) -> None:
    rows = table(tiny)
    assert list(rows[0]) == ["sample_id", "file", "arousal", "valence", "label", "speaker", "test_fold"]
    assert len(rows) == len({row["sample_id"] for row in rows}) == 16
    for row in rows:
        assert int(row["label"]) == 2 * int(row["arousal"]) + int(row["valence"])
        assert row["file"] == f"clips/{row['speaker']}/{row['sample_id']}.mp4"
        assert (tiny / row["file"]).stat().st_size > 0
    assert CLASSES == ("calm_negative", "calm_positive", "excited_negative", "excited_positive")


@pytest.mark.parametrize(("speakers", "folds"), [(4, 2), (6, 3), (12, 3), (10, 5)])
def test_folds_have_their_own_speakers_all_classes_and_both_kinds_of_voice(speakers: int, folds: int) -> None:
    from hicmae.data.synthetic.corpus import Recipe, table
    from hicmae.data.synthetic.voices import draw_voice

    rows = table(Recipe(speakers, 8, 2.0, 96, 0, folds))
    assert {row.test_fold for row in rows} == set(range(1, folds + 1))
    homes = {row.speaker: row.test_fold for row in rows}
    assert all(homes[row.speaker] == row.test_fold for row in rows)
    for fold in range(1, folds + 1):
        here = [row for row in rows if row.test_fold == fold]
        assert len(set(Counter(row.label for row in here).values())) == 1
        assert len({row.label for row in here}) == 4
        assert {draw_voice(0, row.speaker_index).pitch_hz > 150 for row in here} == {True, False}


def test_clips_are_h264_at_25_frames_with_16_khz_mono_aac(tiny: Path) -> None:
    for row in table(tiny):
        with av.open(str(tiny / row["file"])) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, video.average_rate, video.width, video.height) == ("h264", 25, 64, 64)
            assert (audio.codec_context.name, audio.rate, audio.layout.name) == ("aac", 16_000, "mono")
        frames, wave = decoded(tiny / row["file"])
        assert len(frames) == 15
        assert 9_600 <= len(wave) < 9_600 + 2048  # AAC ends on a whole block


def test_decord_reads_the_same_pictures(tiny: Path) -> None:
    from decord import VideoReader, cpu

    path = tiny / table(tiny)[5]["file"]
    reader = VideoReader(str(path), ctx=cpu(0), num_threads=1)
    np.testing.assert_array_equal(reader.get_batch(list(range(len(reader)))).asnumpy(), decoded(path)[0])


def test_a_file_holds_what_was_drawn_and_spoken(tiny: Path) -> None:
    for number in (0, 7, 15):
        row = table(tiny)[number]
        take = Take(0, number // 4, number % 4, int(row["arousal"]), int(row["valence"]), 0.6, 64)
        frames, wave = decoded(tiny / row["file"])
        error = np.mean((frames.astype(float) - pictures(take)) ** 2)
        assert 10 * np.log10(255**2 / error) > 28  # dB; colour at half resolution is most of the loss
        spoken = sound(take)
        assert np.corrcoef(wave[: len(spoken)], spoken)[0, 1] > 0.98  # in step to the sample


def test_two_runs_give_the_same_bytes_on_one_process_and_on_two(tiny: Path, tmp_path: Path) -> None:
    assert digests(generate(tmp_path / "again", **TINY, processes=2)) == digests(tiny)


def test_bytes_do_not_depend_on_what_lies_in_fresh_memory(tiny: Path, tmp_path: Path) -> None:
    """glibc fills new memory with a pattern: an encoder that read what it never wrote gave other files now and then."""
    call = f"generate(Path({str(tmp_path / 'corpus')!r}), **{TINY}, processes=1)"
    code = f"from pathlib import Path; from hicmae.data.synthetic import generate; {call}"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MALLOC_PERTURB_": "170"})
    assert digests(tmp_path / "corpus") == digests(tiny)


def test_another_seed_makes_other_people(tiny: Path, tmp_path: Path) -> None:
    other = digests(generate(tmp_path / "other", **TINY, seed=1, processes=1))
    assert set(other) == set(digests(tiny))
    assert not {digest for name, digest in other.items() if name.endswith("mp4")} & set(digests(tiny).values())


def test_no_two_clips_are_alike(tiny: Path) -> None:
    assert len(set(digests(tiny).values())) == 17


def test_an_interrupted_generation_is_seen_and_goes_on(tiny: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, **TINY, progress=stop, processes=1)
    assert not (tmp_path / "clips.csv").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert len(kept) == 5

    seen: list[tuple[int, int]] = []
    generate(tmp_path, **TINY, progress=lambda done, total: seen.append((done, total)), processes=1)
    assert seen == [(done, 11) for done in range(1, 12)]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert digests(tmp_path) == digests(tiny)


def test_a_killed_generation_leaves_no_process_and_goes_on(tiny: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    place = tmp_path / "corpus"
    arguments = {**TINY, "clips_per_speaker": 400}
    script.write_text(
        "from pathlib import Path\nfrom hicmae.data.synthetic import generate\n"
        f"if __name__ == '__main__':\n    generate(Path({str(place)!r}), **{arguments}, processes=2)\n"
    )
    killed = subprocess.Popen([sys.executable, str(script)], start_new_session=True, stderr=subprocess.DEVNULL)
    _wait_for(lambda: len(list(place.rglob("*.mp4"))) >= 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    _wait_for(lambda: not _living(killed.pid))
    assert not (place / "clips.csv").exists()

    made = len(list(place.rglob("*.mp4")))
    totals: set[int] = set()

    def stop(done: int, total: int) -> None:
        totals.add(total)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(place, **arguments, progress=stop, processes=1)
    assert totals == {1600 - made}
    assert not list(place.rglob(".*.tmp"))
    assert digests_of_first_clips(place, 2) == digests_of_first_clips(tiny, 2)


def digests_of_first_clips(root: Path, count: int) -> list[str]:
    names = sorted(path.name for path in root.rglob("s01_*.mp4"))[:count]
    return [hashlib.sha256((root / "clips/s01" / name.replace("s01_001", "s01_01")).read_bytes()).hexdigest() for name in names]


def _wait_for(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _living(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_what_is_damaged_is_made_again(tiny: Path, tmp_path: Path) -> None:
    generate(tmp_path, **TINY, processes=1)
    (tmp_path / "clips/s01/s01_01.mp4").unlink()
    (tmp_path / "clips/s02/s02_02.mp4").write_bytes(b"")
    (tmp_path / "clips/s03/.s03_01.mp4.123.tmp").write_bytes(b"torn")
    seen: list[int] = []
    generate(tmp_path, **TINY, progress=lambda done, total: seen.append(total), processes=1)
    assert seen == [2, 2]
    assert not list(tmp_path.rglob("*.tmp"))
    assert digests(tmp_path) == digests(tiny)


def test_a_finished_corpus_is_left_alone(tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*.*") if path.name != ".lock"}
    generate(tiny, **TINY, progress=lambda done, total: pytest.fail("nothing was to be made"))
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips_per_speaker": 6}, "clips_per_speaker = 6: must be a multiple of 4"),
        ({"clips_per_speaker": 0}, "clips_per_speaker = 0"),
        ({"folds": 5}, "folds = 5: must be between 2 and the number of speakers, 4"),
        ({"folds": 1}, "folds = 1"),
        ({"seconds": 0.1}, "seconds = 0.1: must be between 0.5 and 60"),
        ({"seconds": float("nan")}, "seconds = nan"),
        ({"size_px": 97}, "size_px = 97: must be even"),
        ({"size_px": 8}, "size_px = 8"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_written(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(tmp_path / "none", **{**TINY, **change})
    assert not (tmp_path / "none").exists()


def test_clips_of_two_recipes_never_mix(tiny: Path) -> None:
    before = digests(tiny)
    with pytest.raises(UsageError, match=r"another recipe .*delete it or give another folder"):
        generate(tiny, **{**TINY, "seed": 3})
    assert digests(tiny) == before


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no generated corpus"):
        generate(tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HicmaeError, match="cannot write the generated clips") as caught:
        generate(tmp_path / "file" / "corpus", **TINY)
    assert "\n" not in str(caught.value)


def test_importing_the_package_does_not_import_the_codecs() -> None:
    code = "import sys, hicmae.data.synthetic; print(sorted({'torch', 'av', 'scipy', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
