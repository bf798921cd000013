"""Folds against the lists of the authors' release (sunlicai/HiCMAE, folder saved/data), id by id, where a copy is at hand.

    HICMAE_RELEASED_LISTS=/their/HiCMAE/saved/data pytest tests/data/test_released_lists.py

From the lists alone a tree of file names is made (with the corpus' own label files written from them), and the corpus has to
find the same clips, labels and folds in it. What the lists' sizes are is recorded here, so that something is tested without them.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path

import pytest

from hicmae.data import corpora
from hicmae.data.corpora import Sample, Tree
from hicmae.data.corpora.listfile import read_list

ROOT = Path("/data")
CREMA_D_TESTS = {1: 1463, 2: 1470, 3: 1476, 4: 1474, 5: 1555}  # lines of split0k/test.csv
MSP_IMPROV_TESTS = {1: 916, 2: 1328, 3: 1622, 4: 1044, 5: 1407, 6: 1470}
MAFW_TEST_1 = 1836
Released = dict[str, tuple[tuple[str, ...], int]]  # answer and test fold of every clip


def released(folder: str) -> Released:
    """The clips of all splits, by the name of their sound file; every clip has to be in one test list."""
    lists = os.environ.get("HICMAE_RELEASED_LISTS")
    if not lists:
        pytest.skip("HICMAE_RELEASED_LISTS does not name a copy of the authors' saved/data")
    found: Released = {}
    trained: dict[str, tuple[str, ...]] = {}
    for split in sorted(Path(lists, folder).glob("split*")):
        fold = int(split.name.removeprefix("split"))
        tests = split / "test.csv" if (split / "test.csv").exists() else split / "val.csv"
        for row in read_list(tests, Path("/")):
            assert row.audio is not None
            assert row.audio.stem not in found
            found[row.audio.stem] = row.answer, fold
        trained |= {row.audio.stem: row.answer for row in read_list(split / "train.csv", Path("/")) if row.audio}
    assert trained == {name: answer for name, (answer, _) in found.items()}
    return found


def listed(corpus: str, files: list[str], texts: dict[str, str] | None = None) -> dict[str, Sample]:
    made = corpora.get(corpus)
    samples = made.checked(made.listing(Tree.of(files, texts, ROOT)), ROOT)
    return {sample.sample_id: sample for sample in samples}


def labels_and_folds(samples: dict[str, Sample]) -> Released:
    return {name: ((str(sample.label),), sample.test_folds[0]) for name, sample in samples.items()}


def test_crema_d_equals_the_release() -> None:
    expected = released("crema-d/audio_visual")
    found = listed(
        "crema_d", [f"{folder}/{name}.{end}" for name in expected for folder, end in (("AudioWAV", "wav"), ("VideoFlash", "flv"))]
    )
    assert labels_and_folds(found) == expected
    assert Counter(fold for _, fold in expected.values()) == CREMA_D_TESTS


def test_ravdess_equals_the_release() -> None:
    expected = {name.replace("03-", "02-", 1): what for name, what in released("ravdess/audio_visual").items()}
    names = [f"Actor_{name[-2:]}/{kind}-{name[3:]}.{end}" for name in expected for kind, end in (("02", "mp4"), ("03", "wav"))]
    assert labels_and_folds(listed("ravdess", names)) == expected


def test_msp_improv_equals_the_release() -> None:
    expected = released("msp-improv/audio_visual")
    lines = [f"{name.replace('MSP', 'UTD', 1)}.avi; {'AHNS'[int(answer[0])]}; A:3;" for name, (answer, _) in expected.items()]
    found = listed("msp_improv", [f"{name}.avi" for name in expected], {"Evalution.txt": "\n".join(lines)})
    assert labels_and_folds(found) == expected
    assert Counter(fold for _, fold in expected.values()) == MSP_IMPROV_TESTS


def test_mafw_equals_the_release() -> None:
    expected = released("mafw/audio_visual/single")
    classes = corpora.get("mafw").classes
    texts = {}
    for fold, part in itertools.product(range(1, 6), ("train", "test")):
        clips = [(name, answer) for name, (answer, its) in expected.items() if (its == fold) == (part == "test")]
        lines = [f"{name}.mp4 {classes[int(answer[0])]}" for name, answer in clips]
        texts[f"single/no_caption/set_{fold}/{part}.txt"] = "\n".join(lines)
    files = [name for clip in expected for name in (f"data/clips/{clip}.mp4", f"data/audio_16k/{clip}.wav")]
    found = listed("mafw", files, texts)
    assert labels_and_folds(found) == expected
    assert len(found) == corpora.get("mafw").published["samples"]
    assert sum(fold == 1 for _, fold in expected.values()) == MAFW_TEST_1


def test_werewolf_xl_equals_the_release() -> None:
    expected = released("werewolf-xl/audio_visual")
    lines = [
        "VideoName,Mean_A_1_2,Mean_P_1_2,Mean_D_1_2",
        *(f"{name},{','.join(answer)}" for name, (answer, _) in expected.items()),
    ]
    found = listed("werewolf_xl", [f"video/{name}.mp4" for name in expected], {"labels.csv": "\n".join(lines)})
    assert {name: (sample.targets, sample.test_folds) for name, sample in found.items()} == {
        name: (tuple(map(float, answer)), (fold,)) for name, (answer, fold) in expected.items()
    }


def test_crema_d_of_all_sentences_has_the_released_sizes_of_the_folds_in_which_no_recording_is_missing() -> None:
    """91 actors speak 12 sentences in 6 emotions, one of them in three intensities; 20 recordings do not exist."""
    emotions = corpora.get("crema_d").classes
    sentences = ("DFA", "IOM", "ITH", "ITS", "IWL", "IWW", "MTI", "TAI", "TIE", "TSI", "WSI")
    takes = [f"{sentence}_{emotion}_XX" for sentence in sentences for emotion in emotions]
    takes += [f"IEO_{emotion}_{level}" for emotion in emotions for level in (["XX"] if emotion == "NEU" else ["LO", "MD", "HI"])]
    found = listed("crema_d", [f"AudioWAV/{actor}_{take}.wav" for actor in range(1001, 1092) for take in takes])
    sizes = Counter(sample.test_folds[0] for sample in found.values())
    assert len(takes) == 82
    assert {fold: sizes[fold] - size for fold, size in CREMA_D_TESTS.items()} == {1: 13, 2: 6, 3: 0, 4: 0, 5: 1}
    assert sum(CREMA_D_TESTS.values()) == corpora.get("crema_d").published["samples"]
    assert sum(MSP_IMPROV_TESTS.values()) == corpora.get("msp_improv").published["samples"]
