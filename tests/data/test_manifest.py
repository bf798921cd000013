"""Fingerprints, parts of a fold, the check of clips, and where data lie."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_files import grey_frames, tone, write_clip, write_table

from hicmae.config import DataConfig, EvaluationConfig
from hicmae.data import corpora, location, manifest
from hicmae.data.corpora import Corpus, Sample
from hicmae.errors import UsageError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    corpora.get.cache_clear()
    return write_table(tmp_path / "data", clips=6, frames=10)


def fingerprint(table: Path) -> str:
    corpora.get.cache_clear()
    return manifest.fingerprint(f"csv:{table}")


def test_a_fingerprint_depends_on_content_alone(table: Path, tmp_path: Path) -> None:
    first = fingerprint(table)
    assert len(first) == manifest.FINGERPRINT_LENGTH
    copy = tmp_path / "elsewhere"
    shutil.copytree(table.parent, copy)
    assert fingerprint(copy / "clips.csv") == first
    os.utime(table.parent / "clips/clip00.mp4", (0, 0))
    assert fingerprint(table) == first


@pytest.mark.parametrize("change", ["bytes", "label", "group", "fold", "id", "missing"])
def test_every_change_of_content_changes_the_fingerprint(table: Path, change: str) -> None:
    before = fingerprint(table)
    clip, text = table.parent / "clips/clip01.mp4", table.read_text()
    if change == "bytes":
        data = bytearray(clip.read_bytes())
        data[-1] ^= 1
        clip.write_bytes(data)
    elif change == "missing":
        clip.unlink()
    else:
        old, new = {
            "label": (",loud,p1", ",calm,p1"),
            "group": (",p1,", ",p9,"),
            "fold": (",2\n", ",1\n"),
            "id": ("clip01,", "clipxx,"),
        }[change]
        assert old in text
        table.write_text(text.replace(old, new, 1))
    assert fingerprint(table) != before


def test_files_that_did_not_change_are_not_read_again(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(table)
    read: list[Path] = []
    original = manifest._hash_file
    monkeypatch.setattr(manifest, "_hash_file", lambda path: (read.append(path), original(path))[1])
    assert fingerprint(table) == first
    assert read == []
    clip = table.parent / "clips/clip02.mp4"
    clip.write_bytes(clip.read_bytes() + b"x")
    fingerprint(table)
    assert read == [clip]


def test_a_broken_cache_of_digests_is_made_anew(table: Path) -> None:
    first = fingerprint(table)
    for file in (location.cache_root() / "digests").glob("*.json"):
        file.write_text("{ torn")
    assert fingerprint(table) == first


def test_a_fingerprint_needs_no_torch(table: Path) -> None:
    code = (
        f"import sys; from hicmae.data.manifest import fingerprint; fingerprint('csv:{table}'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def samples_of(groups: list[str], folds: int) -> list[Sample]:
    return [Sample(f"{number:03d}", None, None, 0, None, group, (int(group) % folds + 1,)) for number, group in enumerate(groups)]


def corpus_of(folds: int) -> Corpus:
    return Corpus("toy", "toy", "classification", lambda tree: [], classes=("a",), folds=tuple(range(1, folds + 1)))


@given(
    groups=st.lists(st.integers(0, 11).map(str), min_size=30, max_size=80),
    fold=st.integers(1, 3),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 5),
)
def test_parts_share_no_sample_and_no_group(groups: list[str], fold: int, fraction: float, seed: int) -> None:
    samples = samples_of([*groups, *map(str, range(12))], 3)
    evaluation = EvaluationConfig(selection="validation", validation_fraction=fraction)
    parts = {
        part: manifest.split_samples(samples, corpus_of(3), fold, part, evaluation, seed)
        for part in ("train", "validation", "test")
    }
    names = [sample.sample_id for part in parts.values() for sample in part]
    assert sorted(names) == sorted(sample.sample_id for sample in samples)
    held = {part: {sample.group for sample in found} for part, found in parts.items()}
    assert not held["train"] & held["validation"]
    assert not (held["train"] | held["validation"]) & held["test"]
    without_one = len(parts["validation"]) - max(
        sum(sample.group == group for sample in parts["validation"]) for group in held["validation"]
    )
    training = len(parts["train"]) + len(parts["validation"])
    assert without_one < fraction * training or len(held["validation"]) == 1
    assert len(parts["validation"]) >= fraction * training or len(held["train"]) == 1


def test_the_validation_cut_is_drawn_by_the_seed() -> None:
    samples = samples_of([str(number) for number in range(12)] * 3, 3)
    cuts = [frozenset(manifest.validation_groups(samples, 0.3, seed)) for seed in range(8)]
    assert cuts == [frozenset(manifest.validation_groups(samples, 0.3, seed)) for seed in range(8)]
    assert len(set(cuts)) > 1


def test_parts_that_cannot_be_are_refused(table: Path) -> None:
    corpus = corpora.get(f"csv:{table}")
    with pytest.raises(UsageError, match=r"there is no fold 3; folds: 1, 2"):
        manifest.split(DataConfig(corpus.name, fold=3), corpus, "test")
    with pytest.raises(UsageError, match="the test part of fold None is empty"):
        manifest.split(DataConfig(corpus.name), corpus, "test")
    assert len(manifest.split(DataConfig(corpus.name), corpus, "train")) == 6
    with pytest.raises(UsageError, match="at least 2 groups"):
        manifest.validation_groups(samples_of(["1", "1"], 1), 0.2, 0)


def test_check_names_every_clip_that_cannot_be_used(tmp_path: Path) -> None:
    table = write_table(tmp_path, clips=6, frames=10)
    folder = tmp_path / "clips"
    (folder / "clip00.mp4").unlink()
    (folder / "clip01.mp4").write_bytes((folder / "clip01.mp4").read_bytes()[:500])
    write_clip(folder / "clip02.mp4", grey_frames(10))
    write_clip(folder / "clip03.mp4", None, tone(1, 16000))
    samples = corpora.get(f"csv:{table}").samples(tmp_path)
    found = {problem.sample_id: problem.reason.split(";")[0] for problem in manifest.check_clips(samples)}
    assert found == {"clip00": "missing", "clip01": "unreadable", "clip02": "no sound stream", "clip03": "no video stream"}
    assert [problem.sample_id for problem in manifest.check_clips(samples, modality="V")] == ["clip00", "clip01", "clip03"]
    assert len(manifest.check_clips(samples, frames=True)) == 4


def test_data_lie_where_the_environment_or_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"crema_d: data not found; put them in \$HICMAE_DATA/crema_d or write `crema_d = "):
        location.corpus_root("crema_d")
    config = platformdirs.user_config_path("hicmae") / "data.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'crema_d = "{tmp_path}"\n')
    assert location.corpus_root("crema_d") == location.corpus_root("crema_d_4") == tmp_path
    (tmp_path / "all/crema_d").mkdir(parents=True)
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path / "all"))
    assert location.corpus_root("crema_d") == tmp_path / "all/crema_d"
    config.write_text("crema_d = ")
    with pytest.raises(UsageError, match=r"data.toml: unreadable .*; one line per corpus"):
        location.find_root("ravdess")
    with pytest.raises(UsageError, match="unknown corpus 'crema'"):
        location.corpus_root("crema")
