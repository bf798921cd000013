"""`list:` with several splits, as the authors release them: the lists of each hold every clip, with one label and sound."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_files import read, write

from hicmae.errors import HicmaeError

LINES = {name: f"v/{name}.mp4 s/{name}.wav {label}" for name, label in zip("abcd", "0110", strict=True)}


def lists(root: Path, **parts: str) -> str:
    """Splits as `split01_train="ab"`: the clips of a list by letters."""
    for part, names in parts.items():
        folder, _, file = part.rpartition("_")
        write(root / folder / f"{file}.csv", *(LINES[name] for name in names))
    return f"list:{root}"


def three_splits(root: Path) -> str:
    return lists(
        root,
        split01_train="bcd", split01_test="a",
        split02_train="acd", split02_test="b",
        split03_train="ab", split03_test="cd",
    )  # fmt: skip


def test_the_folds_have_the_numbers_of_their_folders(tmp_path: Path) -> None:
    name = three_splits(tmp_path)
    for number in (1, 2, 3):
        (tmp_path / f"split0{number}").rename(tmp_path / f"split{number}")
    for number in range(4, 11):
        lists(tmp_path, **{f"split{number}_train": "abc", f"split{number}_test": "d"})  # split10 stands before split2 by name
    corpus, samples = read(name)
    assert corpus.folds == tuple(range(1, 11))
    assert {key: sample.test_folds for key, sample in samples.items()} == {
        "a": (1,),
        "b": (2,),
        "c": (3,),
        "d": (3, 4, 5, 6, 7, 8, 9, 10),
    }


def move(root: Path, old: str, new: str) -> None:
    (root / old).rename(root / new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: move(root, "split02", "split04"), r"split02 is missing \(there are split01, split03, split04\)"),
        (lambda root: move(root, "split01", "split00"), r"split00: a split has a number of its own; name the folders split01"),
        (lambda root: move(root, "split02", "split_3"), r"split_3: a split has a number of its own"),
        (lambda root: move(root, "split02", "split02_old"), r"split02_old: a split has a number of its own"),
        (lambda root: lists(root, split02_train="abcd"), r"split02: .*b.mp4 is both in training and in test; remove it"),
        (lambda root: lists(root, split02_train="ac"), r"split02: .*d.mp4 is missing here; train.csv and test.csv of every"),
        (lambda root: lists(root, split01_train="bc"), r"split02: .*d.mp4 is missing in the splits before"),
        (lambda root: lists(root, split02_train="acda"), r"split02/train.csv: .*a.mp4 is there twice"),
        (lambda root: lists(root, _train="a"), r"holds both train.csv and split01; keep the one or the other"),
        (lambda root: write(root / "split02/test.csv", "v/b.mp4 s/other.wav 1"), r"split02: .*b.mp4 has the sound .*other.wav"),
        (lambda root: write(root / "split02/test.csv", "v/b.mp4 s/b.wav 0"), r"split02: .*b.mp4 has the label 0 here and 1"),
        (lambda root: write(root / "split02/val.csv", "v/b.mp4 s/b.wav 0"), r"val.csv: .*b.mp4 has another label or sound here"),
    ],
)  # fmt: skip
def test_splits_that_do_not_agree_are_one_line(tmp_path: Path, change: object, message: str) -> None:
    name = three_splits(tmp_path)
    assert callable(change)
    change(tmp_path)
    with pytest.raises(HicmaeError, match=message) as error:
        read(name)
    assert "\n" not in str(error.value)


def test_a_list_for_validation_beside_the_one_for_test(tmp_path: Path) -> None:
    """The authors' lists have both with the same clips; clips of their own are not lost."""
    _, samples = read(lists(tmp_path, _train="ab", _test="c", _val="cd"))
    assert {key: sample.test_folds for key, sample in samples.items()} == {"a": (), "b": (), "c": (1,), "d": ()}


def test_a_folder_with_nothing_but_train_csv_is_one_list(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "v/a.mp4 0", "v/b.mp4 s/b.m4a")
    corpus, samples = read(f"list:{tmp_path}")
    assert (corpus.task, corpus.folds) == ("pretraining", ())
    assert [sample.audio for sample in samples.values()] == [tmp_path / "v/a.mp4", tmp_path / "s/b.m4a"]
    assert read(f"list:{tmp_path / 'train.csv'}")[1] == samples
