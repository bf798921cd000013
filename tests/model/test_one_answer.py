"""A run and everything written from it give one answer: its evaluation, `predict`, files of its weights, any order of clips."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from experiments.cli import main
from hicmae import presets
from hicmae.config import FinetuneConfig, change
from hicmae.data.loader import finetune_batches
from hicmae.data.sampling import test_views as planned_views
from hicmae.data.synthetic.write import write_media
from hicmae.errors import HicmaeError
from hicmae.model import gallery, inference
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.official import save_official
from hicmae.model.zoo import as_classifier, build, load, open_model
from hicmae.record import RunRecord
from hicmae.train.distributed import World
from hicmae.train.evaluate import evaluate


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips with the classes happy and sad: one to train on and two to test on, each."""
    root = tmp_path_factory.mktemp("mine")
    for number, name in enumerate(("train/happy/a", "train/sad/b", "test/happy/c", "test/sad/d", "test/happy/e", "test/sad/f")):
        random = np.random.default_rng(number)
        frames = 30 + 7 * number
        pictures = np.repeat(random.integers(0, 255, (frames, 1, 1, 3), dtype=np.uint8), 48, 1).repeat(64, 2)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_media(root / f"{name}.mp4", pictures, random.normal(0, 0.1, 16000 * frames // 25), fps=25)
    return root


def of_folder(mine: Path, **delta: object) -> FinetuneConfig:
    changes = {"data.corpus": f"folder:{mine}", **{name.replace("__", "."): value for name, value in delta.items()}}
    return change(presets.finetune("smoke", outputs=2), changes)


@pytest.fixture
def run(mine: Path, tmp_path: Path) -> RunRecord:
    """What a run leaves behind whose weights show neither its heads, its fusion, its stride nor its views."""
    config = of_folder(
        mine,
        encoder__heads=4,
        encoder__fusion_flow="audio_first",
        data__stride_frames=3,
        evaluation__segments=3,
        evaluation__crops="three",
        evaluation__random_gain=False,
    )
    torch.manual_seed(0)
    record = RunRecord.create(tmp_path / "runs", config)
    save_official(build(config), record.path / "checkpoints" / "final.safetensors")
    return record


@pytest.fixture
def answers(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """A command's output and its notes."""

    def answered(*arguments: object) -> tuple[str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert not left.value.code, output.err
        return output.out, output.err

    return answered


def test_predictions_are_those_of_the_run_s_own_evaluation(run: RunRecord) -> None:
    loaded = open_model(run.path)
    config = loaded.config
    assert isinstance(config, FinetuneConfig)
    assert isinstance(loaded.model, HiCMAEClassifier)
    batches = finetune_batches(config, "test")
    stored = evaluate(loaded.model, batches, config, World(0, 1, torch.device("cpu")))
    assert stored is not None
    assert stored.views.shape == (9, 4, 2)
    files = [sample.video for sample in batches.samples if sample.video]
    assert inference.predict(loaded, files) == pytest.approx(stored.scores, abs=1e-6)
    for views, wanted in zip(inference.ClipReader(config, files), stored.views.swapaxes(0, 1), strict=True):
        with torch.inference_mode():
            assert loaded.model(**views).numpy() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("ask", [inference.predict, inference.embed])
def test_an_answer_depends_neither_on_the_order_of_clips_nor_on_chance(mine: Path, tmp_path: Path, ask: Callable) -> None:
    record = RunRecord.create(tmp_path, config := of_folder(mine))  # with the release's random gain, as runs have by default
    save_official(build(config), record.path / "checkpoints" / "final.safetensors")
    files = sorted(mine.rglob("*.mp4"))[:2]
    assert np.array_equal(ask(open_model(record.path), files[::-1])[::-1], ask(open_model(record.path), files))


def test_a_pretrained_model_sees_clips_at_its_own_stride(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = change(presets.pretrain("smoke"), {"data.stride_frames": 2})
    record = RunRecord.create(tmp_path, config)
    save_official(build(config), record.path / "checkpoints" / "final.safetensors")
    seen: list[tuple[int, ...]] = []
    real = inference.DirectClips.frames
    monkeypatch.setattr(
        inference.DirectClips, "frames", lambda clips, n, frames: [seen.append(tuple(frames)), real(clips, n, frames)][1]
    )
    loaded, (file, *_) = open_model(record.path), sorted(mine.rglob("a.mp4"))
    inference.embed(loaded, [file])
    gallery.draw(loaded, [file], tmp_path / "pictures")
    assert seen == 2 * [plan.frames for plan in planned_views(30, config.encoder.frames, 2, 2)]
    assert inference.viewing(loaded, as_classifier(loaded)).data.corpus == config.data.corpus


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_of_weights_answers_as_its_run(
    run: RunRecord, mine: Path, tmp_path: Path, answers: Callable[..., tuple[str, str]], name: str
) -> None:
    clips = sorted((mine / "test").rglob("*.mp4"))[:2]
    wanted, _ = answers("predict", *clips, "-m", run.path, "--json")
    assert set(json.loads(wanted)[0]["scores"]) == {"happy", "sad"}
    answers("weights", run.path, tmp_path / name)
    assert answers("predict", *clips, "-m", tmp_path / name, "--json") == (wanted, "")
    answers("weights", tmp_path / name, tmp_path / "again.pth")
    assert answers("predict", *clips, "-m", tmp_path / "again.pth", "--json") == (wanted, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / name).encoder_config == run.config().encoder


def test_classes_are_known_where_the_corpus_is_not(
    run: RunRecord, mine: Path, tmp_path: Path, answers: Callable[..., tuple[str, str]]
) -> None:
    answers("weights", run.path, tmp_path / "w.pth")
    loaded = open_model(tmp_path / "w.pth")
    elsewhere = dataclasses.replace(loaded.config, data=dataclasses.replace(loaded.config.data, corpus="folder:/gone"))
    assert isinstance(elsewhere, FinetuneConfig)
    assert inference.class_names(elsewhere, written=loaded.classes) == ["happy", "sad"]
    assert inference.class_names(elsewhere) == ["0", "1"]


def test_the_authors_code_finds_the_weights_and_the_text_runs_no_code(
    run: RunRecord, tmp_path: Path, answers: Callable[..., tuple[str, str]]
) -> None:
    model = load(run.path)
    for name in ("w.pth", "w.safetensors"):
        answers("weights", run.path, tmp_path / name)
    content = torch.load(tmp_path / "w.pth", weights_only=True)
    for state in (content["model"], safetensors.torch.load_file(tmp_path / "w.safetensors")):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert json.loads(content["hicmae"])["classes"] == ["happy", "sad"]


def test_a_file_that_says_nothing_is_answered_with_a_note(
    run: RunRecord, mine: Path, tmp_path: Path, answers: Callable[..., tuple[str, str]]
) -> None:
    save_official(load(run.path), tmp_path / "bare.pth")
    _, note = answers("predict", next(mine.rglob("*.mp4")), "-m", tmp_path / "bare.pth")
    assert note.count("\n") == 1
    assert "bare.pth: its shapes do not say its configuration; assumed: heads: 2, 48 px, 4 frames at a stride of 4" in note
    with pytest.warns(UserWarning, match="parallel fusion"):
        load(tmp_path / "bare.pth")
    answers("weights", tmp_path / "bare.pth", tmp_path / "still_bare.safetensors")
    assert open_model(tmp_path / "still_bare.safetensors").assumed  # what was assumed is not written as if it were known


@pytest.mark.parametrize("about", ['{"config": {"stage": "finetune", "hd": 1}}', '{"config": 3}', "[]", "{"])
def test_a_damaged_configuration_in_a_file_is_named(run: RunRecord, tmp_path: Path, about: str) -> None:
    torch.save({"model": load(run.path).state_dict(), "hicmae": about}, tmp_path / "w.pth")
    with pytest.raises(HicmaeError, match=r"w\.pth: .* (cannot be used|is damaged)") as caught:
        open_model(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_given_counts_more_than_the_one_in_the_file(run: RunRecord, tmp_path: Path) -> None:
    about = '{"config": {"stage": "finetune", "of a later version": 1}, "classes": 3}'
    torch.save({"model": load(run.path).state_dict(), "hicmae": about}, tmp_path / "w.pth")
    loaded = open_model(tmp_path / "w.pth", config=run.config())
    assert (loaded.config, loaded.classes, loaded.assumed) == (run.config(), (), "")
