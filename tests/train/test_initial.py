"""Weights to start from: a modality that they lack is refused when a run is planned, before any clip is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.experiment import Experiment, Variant
from experiments.launcher import Request, plan_for
from hicmae import presets
from hicmae.config import FinetuneConfig, InitialWeights, change
from hicmae.errors import ConfigError
from hicmae.model.zoo import build
from hicmae.record import RunRecord
from hicmae.train.checkpoint import file_digest
from hicmae.train.initial import check_modality


@pytest.fixture
def sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InitialWeights:
    """A checkpoint file with the encoder of sound alone, where runs look for it."""
    (tmp_path / "published").mkdir()
    path = tmp_path / "published" / "sound.pth"
    torch.save({"model": build(change(presets.finetune("smoke"), {"head.modality": "A"})).state_dict()}, path)
    monkeypatch.setenv("HICMAE_CHECKPOINTS", str(path.parent))
    return InitialWeights("official", file_digest(path))


def tuned(modality: str, initial: InitialWeights) -> FinetuneConfig:
    return change(presets.finetune("smoke"), {"head.modality": modality, "initial": initial})


@pytest.mark.parametrize("modality", ["AV", "V"])
def test_a_checkpoint_file_without_the_modality_is_refused(tmp_path: Path, sound: InitialWeights, modality: str) -> None:
    check_modality(tuned("A", sound), tmp_path)
    with pytest.raises(ConfigError, match=rf"HeadConfig.modality = '{modality}': must be A; official {sound.reference}"):
        check_modality(tuned(modality, sound), tmp_path)


def test_a_run_without_the_modality_is_refused(tmp_path: Path) -> None:
    heard = RunRecord.create(tmp_path, tuned("A", InitialWeights()))
    with pytest.raises(ConfigError, match=rf"HeadConfig.modality = 'AV': must be A; run {heard.id} holds no other stream"):
        check_modality(tuned("AV", InitialWeights("run", heard.id)), tmp_path)
    both = RunRecord.create(tmp_path, presets.pretrain("smoke", "synthetic"))
    for modality in ("AV", "A", "V"):
        check_modality(tuned(modality, InitialWeights("run", both.id)), tmp_path)


def test_weights_that_are_elsewhere_are_left_to_the_machine_that_has_them(tmp_path: Path) -> None:
    for initial in (InitialWeights("run", "0123456789abcdef"), InitialWeights("official", "ab" * 32), InitialWeights()):
        check_modality(tuned("V", initial), tmp_path)


def test_a_plan_refuses_it_and_makes_nothing(tmp_path: Path, sound: InitialWeights) -> None:
    start = {"initial.source": "official", "initial.reference": sound.reference}
    variants = tuple(Variant(name, {**start, "head.modality": name}) for name in ("A", "AV"))
    study = Experiment("own", "Own", variants, ("synthetic",), folds=(1,), size="smoke", pretrain_corpus=None)
    request = Request("own", tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"HeadConfig\.modality = 'AV': must be A"):
        plan_for(request, study)
    assert not (tmp_path / "runs").exists()
    fitting = Experiment("own", "Own", variants[:1], ("synthetic",), folds=(1,), size="smoke", pretrain_corpus=None)
    assert len(plan_for(request, fitting)[0].to_do) == 1


def test_a_plan_refuses_a_head_that_does_not_fit_the_corpus(tmp_path: Path) -> None:
    study = Experiment(
        "own", "Own", (Variant("wide", {"head.outputs": 7}),), ("synthetic",), folds=(1,), size="smoke", pretrain_corpus=None
    )
    with pytest.raises(ConfigError, match=r"HeadConfig\.outputs = 7: must be 4, the classes of synthetic"):
        plan_for(Request("own", tmp_path / "runs"), study)
