"""`hicmae data generate`: what it prints, where it writes, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli import main
from hicmae.data import corpora

SMALL = ("--speakers", "2", "--clips", "4", "--seconds", "0.6", "--size", "64", "--folds", "2", "--processes", "1")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["data", "generate", *arguments])
    return int(ended.value.code or 0)


def test_it_makes_a_corpus_that_studies_can_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path / "here"), *SMALL) == 0
    assert capsys.readouterr().out.strip().replace("\n", "") == f"8 clips of 2 speakers in {tmp_path / 'here'}"
    assert len(corpora.get("synthetic").samples(tmp_path / "here")) == 8


def test_without_a_folder_it_writes_where_studies_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "synthetic").mkdir()
    monkeypatch.setenv("HICMAE_DATA", str(tmp_path))
    assert run(*SMALL) == 0
    assert (tmp_path / "synthetic" / "clips.csv").exists()


def test_it_writes_the_layout_of_a_corpus(tmp_path: Path) -> None:
    assert run(str(tmp_path / "mer"), "--layout", "mer_multi", "--seconds", "0.6", "--size", "64") == 0
    assert len(corpora.get("mer_multi").samples(tmp_path / "mer")) == 18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clips", "6"), "clips_per_speaker = 6: must be a multiple of 4, the classes"),
        (("--folds", "9", "--speakers", "3"), "folds = 9: must be between 2 and the number of speakers, 3"),
        (("--layout", "cremad"), "unknown layout 'cremad'; valid, nearest first: crema_d,"),
        (("--sped", "2"), "unknown option '--sped'; valid, nearest first: --seed"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run(str(tmp_path / "none"), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_layout_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--layout", "ravdess") == 2
    assert "--layout ravdess needs a folder" in capsys.readouterr().err
