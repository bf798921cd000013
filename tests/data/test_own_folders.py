"""`folder:`: parts and classes by the names of folders, and what belongs to one clip. Nothing is lost without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_files import read, write

from hicmae.errors import ClipError, UsageError


def clips(root: Path, *names: str) -> str:
    for name in names:
        write(root / name)
    return f"folder:{root}"


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "Val"])
def test_validation_clips_join_training_where_there_is_a_test_part(tmp_path: Path, validation: str) -> None:
    name = clips(
        tmp_path, "README", *(f"{part}/{mood}/{part}_{mood}.mp4" for part in ("train", validation, "test") for mood in "hs")
    )
    corpus, samples = read(name)
    assert (corpus.classes, corpus.folds) == (("h", "s"), (1,))
    assert [key for key, sample in samples.items() if sample.test_folds] == ["test_h", "test_s"]
    assert samples[f"{validation}_s"].label == 1
    assert len(samples) == 6


def test_a_validation_folder_is_the_test_part_where_there_is_no_other(tmp_path: Path) -> None:
    corpus, samples = read(clips(tmp_path, "train/h/a.mp4", "train/s/b.mp4", "val/h/c.mp4", "val/s/d.mp4"))
    assert (corpus.classes, corpus.folds) == (("h", "s"), (1,))
    assert [key for key, sample in samples.items() if sample.test_folds] == ["c", "d"]


def test_a_validation_folder_is_the_training_where_there_is_a_test_part_alone(tmp_path: Path) -> None:
    """As VoxCeleb2 is distributed."""
    corpus, samples = read(clips(tmp_path, "dev/h/a.mp4", "dev/s/b.mp4", "test/h/c.mp4", "test/s/d.mp4"))
    assert (corpus.classes, corpus.folds) == (("h", "s"), (1,))
    assert [key for key, sample in samples.items() if sample.test_folds] == ["c", "d"]


def test_training_alone_has_classes_and_no_fold(tmp_path: Path) -> None:
    corpus, _ = read(clips(tmp_path, "Training/h/a.mp4", "Training/s/b.mp4"))
    assert (corpus.classes, corpus.folds) == (("h", "s"), ())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/h/a.mp4", "test/h/b.mp4", "extra/h/c.mp4"], "holds the folders extra, test, train; they must be train and test"),
        (["test/h/b.mp4"], "holds the folders test; they must be train and test"),
        (["happy/a.mp4", "test/b.mp4"], "holds the folders happy, test; .* or all be classes of other names"),
        (["notes.txt", "script.py"], "holds no clips"),
    ],
)
def test_folders_that_cannot_be_understood_are_named(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(clips(tmp_path, *names))


@pytest.mark.parametrize(
    "names",
    [["h/a.avi", "h/a.mp4"], ["h/a.m4a", "h/a.wav", "h/a.mp4"], ["h/a/1.png", "h/a_aligned/1.png"]],
)
def test_two_files_of_one_clip_are_both_named(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ClipError, match=r"the clip h/a is there twice \(also .*\); keep one of them") as error:
        read(clips(tmp_path, *names, "s/b.mp4"))
    assert all(str(tmp_path / name.removesuffix("/1.png")) in str(error.value) for name in names[:2])


def test_a_clip_outside_the_folders_of_classes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"a.mp4: has 1 labels where the first clip, .*stray.mp4, has 0; put every clip into"):
        read(clips(tmp_path, "h/a.mp4", "stray.mp4"))


def test_folders_of_frames_keep_the_points_in_their_names_and_find_their_sound(tmp_path: Path) -> None:
    names = ["h/clip.v1/1.jpg", "h/clip.v2/1.jpg", "h/clip.v2.wav", "h/x_aligned/1.bmp", "h/x.wav", "h/y/1.jpg", "h/y.mp4"]
    _, samples = read(clips(tmp_path, *names, "h/notes.docx"))
    assert {key: (sample.video, sample.audio) for key, sample in samples.items()} == {
        "clip.v1": (tmp_path / "h/clip.v1", None),
        "clip.v2": (tmp_path / "h/clip.v2", tmp_path / "h/clip.v2.wav"),
        "x": (tmp_path / "h/x_aligned", tmp_path / "h/x.wav"),
        "y": (tmp_path / "h/y", tmp_path / "h/y.mp4"),
    }


def test_rarer_media_are_not_passed_over(tmp_path: Path) -> None:
    _, samples = read(clips(tmp_path, "h/a.wmv", "h/b.3gp", "h/c.ts", "h/c.opus"))
    assert list(samples) == ["a", "b", "c"]
    assert samples["c"].audio == tmp_path / "h/c.opus"
