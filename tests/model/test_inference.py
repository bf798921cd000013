"""Answers and features for real media files, and the commands around models, run as a user runs them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

from experiments.cli import main
from hicmae import presets
from hicmae.config import change
from hicmae.data.synthetic.write import write_media
from hicmae.errors import ClipError, UsageError
from hicmae.model import gallery, inference
from hicmae.model.official import read_checkpoint, save_official
from hicmae.model.zoo import Loaded, as_classifier, build, open_model
from hicmae.record import RunRecord

GOLDEN = Path(__file__).parents[1] / "golden"
DIM = presets.ENCODERS["smoke"].dim


def write_clip(path: Path, frames: int, seed: int = 0) -> Path:
    """A video whose frame i has the grey 40 + 2 i, with noise as its sound."""
    shades = (40 + 2 * np.arange(frames)).astype(np.uint8)
    pictures = np.broadcast_to(shades[:, None, None, None], (frames, 64, 64, 3))
    sound = np.random.default_rng(seed).normal(0, 0.1, 16000 * frames // 25)
    write_media(path, np.ascontiguousarray(pictures), sound, fps=25)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real media files with picture and sound."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{frames}.mp4", frames, frames) for frames in (80, 40, 30)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned checkpoint with four classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "finetuned.safetensors"
    save_official(build(presets.finetune("smoke", outputs=4)), path)
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained checkpoint."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "pretrained.pth"
    save_official(build(presets.pretrain("smoke")), path)
    return path


@dataclass
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def hicmae(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The command `hicmae`, called in this process: importing torch for each call would take most of the time."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        return Done(int(left.value.code or 0), *capsys.readouterr())

    return run


def test_clips_are_seen_in_the_release_s_test_views(clips: list[Path]) -> None:
    plans = json.loads((GOLDEN / "frame_plans.json").read_text())["test_views"]["80_frames_stride_4"]
    config = change(presets.finetune("smoke"), {"data.stride_frames": 4, "encoder.frames": 16})
    (views,) = inference.ClipReader(config, clips[:1])
    assert views["video"].shape == (2, 3, 16, config.encoder.image_px, config.encoder.image_px)
    assert views["audio"].shape == (2, 1, config.encoder.audio_frames, config.encoder.mel_bins)
    red = 255 * (views["video"][:, 0].mean((2, 3)) * 0.229 + 0.485)
    for seen, plan in zip(red, plans, strict=True):
        assert seen.tolist() == pytest.approx([40 + 2 * frame for frame in plan["frames"]], abs=3)


def test_probabilities_are_the_mean_over_views(clips: list[Path], weights: Path) -> None:
    loaded = open_model(weights)
    scores = inference.predict(loaded, clips)
    assert scores.shape == (3, 4)
    assert scores.sum(1) == pytest.approx(np.ones(3))
    config = inference.viewing(loaded, as_classifier(loaded))
    for row, views in zip(scores, inference.ClipReader(config, clips), strict=True):
        with torch.inference_mode():
            assert row == pytest.approx(softmax(loaded.model(**views).double().numpy(), axis=1).mean(0))


def test_regression_outputs_are_not_squashed(clips: list[Path]) -> None:
    config = presets.finetune_regression("smoke", outputs=2)
    model = build(config).eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([3.0, -2.0]))
    assert inference.predict(Loaded(model, config, "here"), clips[:1]) == pytest.approx(np.array([[3.0, -2.0]]))


def test_features_of_one_stream_need_no_file_of_the_other(tmp_path: Path, pretrained: Path) -> None:
    write_media(tmp_path / "voice.wav", None, np.random.default_rng(0).normal(0, 0.1, 16000))
    features = inference.embed(open_model(pretrained), [tmp_path / "voice.wav"], "A")
    assert features.shape == (1, 2 * DIM)
    with pytest.raises(ClipError, match=r"voice\.wav"):
        inference.embed(open_model(pretrained), [tmp_path / "voice.wav"], "AV")


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    for name, reason in (("text.mp4", "unreadable"), ("absent.mp4", "missing")):
        with pytest.raises(ClipError, match=rf"{name}: {reason}"):
            inference.predict(open_model(weights), [tmp_path / name])


def test_class_names_are_the_corpus_s(weights: Path, pretrained: Path) -> None:
    _, config = inference.with_head(open_model(weights))
    assert inference.class_names(config) == ["0", "1", "2", "3"]
    assert inference.class_names(config, "crema_d_4") == ["ANG", "HAP", "NEU", "SAD"]
    assert inference.class_names(change(config, {"data.corpus": "msp_improv"})) == ["angry", "happy", "neutral", "sad"]
    with pytest.raises(UsageError, match="crema_d has 6 classes or targets, the model has 4 outputs"):
        inference.class_names(config, "crema_d")
    with pytest.raises(UsageError, match=r"pretrained\.pth: is a pre-trained model without a head"):
        inference.with_head(open_model(pretrained))


def test_predict_prints_a_table_and_json(hicmae: Callable[..., Done], clips: list[Path], weights: Path) -> None:
    table = hicmae("predict", *clips, "--model", weights, "--corpus", "crema_d_4")
    assert table.returncode == 0, table.stderr
    assert "ANG" in table.stdout
    printed = hicmae("predict", clips[0], "-m", weights, "--json", "--device", "cpu")
    (row,) = json.loads(printed.stdout)
    assert row["clip"] == str(clips[0])
    assert list(row["scores"].values()) == pytest.approx(inference.predict(open_model(weights), clips[:1])[0])


def test_embed_writes_a_row_for_each_clip(hicmae: Callable[..., Done], clips: list[Path], weights: Path, tmp_path: Path) -> None:
    wanted = inference.embed(open_model(weights), clips)
    for name in ("f.npz", "f.csv", "f.parquet"):
        done = hicmae("embed", *clips, "--model", weights, "--output", tmp_path / "new" / name)
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "new" / "f.npz") as file:
        assert file["clips"].tolist() == list(map(str, clips))
        assert file["features"] == pytest.approx(wanted)
    for table in (pd.read_csv(tmp_path / "new" / "f.csv"), pd.read_parquet(tmp_path / "new" / "f.parquet")):
        assert table["clip"].tolist() == list(map(str, clips))
        assert table.drop(columns="clip").to_numpy() == pytest.approx(wanted)


def test_weights_are_written_for_the_authors_code_and_come_back(
    hicmae: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunRecord.create(tmp_path / "runs", presets.pretrain("smoke"))
    kept, last = (build(presets.pretrain("smoke")) for _ in range(2))
    for model, name in ((kept, "epoch-0004"), (last, "final")):
        save_official(model, record.path / "checkpoints" / f"{name}.safetensors")
    monkeypatch.setenv("HICMAE_RUNS", str(tmp_path / "runs"))
    for arguments, model in (
        ((record.id, tmp_path / "new" / "last.pth"), last),
        ((record.path, tmp_path / "kept.safetensors", "--epoch", 4), kept),
        ((tmp_path / "new" / "last.pth", tmp_path / "again.safetensors"), last),
    ):
        done = hicmae("weights", *arguments)
        assert done.returncode == 0, done.stderr
        assert f"{sum(value.numel() for value in model.parameters()):,} parameters" in done.stdout
        written = read_checkpoint(arguments[1])
        assert written.keys() == model.state_dict().keys()
        assert all(torch.equal(value, written[name]) for name, value in model.state_dict().items())
    assert set(torch.load(tmp_path / "new" / "last.pth", weights_only=True)) == {"model", "hicmae"}  # the authors' code: model
    (tmp_path / "file").write_text("")
    missing = hicmae("weights", record.path, tmp_path / "kept.safetensors", "--epoch", 5)
    assert "the run is new and kept epochs [4]; launch it to the end" in missing.stderr
    record.finish({})
    missing = hicmae("weights", record.path, tmp_path / "kept.safetensors", "--epoch", 5)
    assert "the run is done and kept epochs [4]; name a kept epoch, or none for the last weights" in missing.stderr
    failed = hicmae("weights", record.path, tmp_path / "file" / "w.pth")
    assert failed.returncode == 2
    assert "w.pth: cannot be written" in failed.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors", "file", "kept.safetensors", "new", "runs"]


def test_pictures_are_drawn_of_both_stages(
    hicmae: Callable[..., Done], clips: list[Path], weights: Path, pretrained: Path, tmp_path: Path
) -> None:
    done = hicmae("pictures", *clips, "--model", weights, "-o", tmp_path / "f")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert names == {"layer-weights.png", "features-pca.png", "attention-80.png", "attention-40.png", "attention-30.png"}
    done = hicmae("pictures", clips[0], "--model", pretrained, "-o", tmp_path / "p")
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"reconstruction-80.png", "attention-80.png"}


def test_wrong_usage_is_one_line_and_exit_2(
    hicmae: Callable[..., Done], clips: list[Path], weights: Path, pretrained: Path
) -> None:
    for arguments, message in (
        (("predict", clips[0], "--model", "bse"), "valid, nearest first: base"),
        (("predict", clips[0], "--model", pretrained), "pre-trained model without a head"),
        (("embed", clips[0], "--model", weights, "-o", "features.txt"), "unknown ending; valid: .npz, .csv, .parquet"),
        (("weights", weights, "w.onnx"), "unknown ending; valid: .safetensors, .pth, .pt"),
        (("weights", "base", "w.pth"), "base is a size with new, random weights; give a run"),
        (
            ("embed", clips[0], "--model", weights, "-o", "f.npz", "--modality", "A"),
            "finetuned.safetensors was fine-tuned with AV",
        ),
        (("pictures", clips[0], "--model", weights, "-o", clips[0]), "80.mp4: is a file; name a folder for the pictures"),
        (("pictures", clips[0], "--model", weights, "--seed", "-1"), "'--seed': "),
        (("predict", clips[0], "--model", weights, "--device", "meta"), "unknown device 'meta'; valid: auto, cpu, cuda, cuda:0"),
        (("parity", "nowhere"), "nowhere: no such folder"),
        (("weights", weights, "w.pth", "--epoch", 4), "--epoch is for runs of pre-training"),
        (("pictures", clips[0], "--model", weights, "--method", "tsn"), "valid, nearest first: tsne"),
        (("summary", "bas"), "valid, nearest first: base"),
        (("bench", "model", "--precision", "fp8"), "valid, nearest first: fp16"),
        (("bench", "model", "--batch", "1"), "at least 2"),
    ):
        done = hicmae(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(
    hicmae: Callable[..., Done], weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for name in ("f.npz", "f.csv", "f.parquet", "w.pth"):
        (tmp_path / name).mkdir()
    for arguments, message in (
        (("embed", "no.mp4", "-m", weights, "-o", "/proc/f.npz"), "/proc/f.npz: cannot be written"),
        (("embed", "no.mp4", "-m", weights, "-o", tmp_path / "file" / "f.csv"), "f.csv: cannot be written"),
        (("embed", "no.mp4", "-m", weights, "-o", tmp_path / "f.npz"), "f.npz: is a folder"),
        (("weights", "no.pth", tmp_path / "w.pth"), "w.pth: is a folder"),
        (("weights", "no.pth", "/proc/new/w.pth"), "/proc/new/w.pth: cannot be written"),
        (("pictures", "no.mp4", "-m", weights, "-o", "/proc/new"), "cannot be written"),
    ):
        done = hicmae(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr


def test_features_are_written_whole_or_not_at_all(
    hicmae: Callable[..., Done], clips: list[Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: IO[bytes], **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "f.npz").write_text("older")
    monkeypatch.setattr(np, "savez", full)
    done = hicmae("embed", clips[0], "-m", weights, "-o", tmp_path / "f.npz")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "f.npz: cannot be written (No space left on device)" in done.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f.npz", "older")]


def test_pictures_of_files_with_one_name_or_with_signs_are_all_there(tmp_path: Path, weights: Path) -> None:
    places = [
        tmp_path / place for place in ("a/x/same.mp4", "b/x/same.mp4", "b/x/same.avi", "b/x/same-2.mp4", "c/cost$5_^$\u6f22.mp4")
    ]
    for i, place in enumerate(places):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_clip(place, 8, i)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        drawn = gallery.draw(open_model(weights), places, tmp_path / "p")
    assert len({path.name for path in drawn if path.name.startswith("attention-")}) == len(places)
    assert {"attention-x-same.png", "attention-x-same-2.png", "attention-x-same-3.png"} <= {path.name for path in drawn}
    assert all(path.is_file() for path in drawn)


def test_parity_passes_here_and_fails_beyond_tolerance(hicmae: Callable[..., Done], tmp_path: Path) -> None:
    done = hicmae("parity", GOLDEN)
    assert done.returncode == 0, done.stdout
    assert "quantities in 6 files are equal to the authors' release" in done.stdout
    assert "relative to that floor. So it is with 27 of 384 gradients in pretrain_tiny.npz, 5 of 214" in done.stdout
    with np.load(GOLDEN / "metrics.npz") as file:
        np.savez(tmp_path / "metrics.npz", **{**file, "uar": file["uar"] + 1e-6})
    done = hicmae("parity", tmp_path)
    assert done.returncode == 1
    assert "DIFFERS" in done.stdout
    rows = json.loads(hicmae("parity", tmp_path, "--json").stdout)
    assert [row["quantity"] for row in rows if not row["passed"]] == ["UAR"]


def test_summary_prints_parameters_and_operations(hicmae: Callable[..., Done]) -> None:
    done = hicmae("summary", "smoke")
    assert "all parameters" in done.stdout, done.stderr
    more, fewer = (json.loads(hicmae("summary", "smoke", "--json", "--classes", n).stdout)[1]["total"] for n in (11, 6))
    assert more == fewer + 5 * (4 * DIM + 1)
    assert f"{fewer:,}" in done.stdout


@pytest.mark.recordings
def test_real_recordings_are_embedded_and_drawn(recordings: Path, pretrained: Path, tmp_path: Path) -> None:
    files = sorted((recordings / "grid").glob("*.mp4"))[:3]
    features = inference.embed(open_model(pretrained), files)
    assert features.shape == (3, 4 * DIM)
    assert np.isfinite(features).all()
    silent = recordings / "ravdess" / "01-01-08-02-01-01-19.mp4"
    with pytest.raises(ClipError, match=r"01-01-08-02-01-01-19\.mp4: no sound stream"):
        inference.embed(open_model(pretrained), [silent])
    assert inference.embed(open_model(pretrained), [silent], "V").shape == (1, 2 * DIM)
