"""Checking an installation against numbers made with the authors' release: `hicmae parity DIR`.

A folder holds any of pretrain_*.npz, finetune_*.npz, finetune_param_groups.json, lr_schedules.json, fbank.npz,
frame_plans.json and metrics.npz. The sizes of a model come from the file's own `config`; nothing is hard-wired.

Legend: B batch, N tokens, L levels.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hicmae import metrics
from hicmae.config import DecoderConfig, EncoderConfig, HeadConfig, ObjectiveConfig, OptimConfig
from hicmae.data.audio import fbank
from hicmae.data.sampling import test_views, train_plan
from hicmae.errors import HicmaeError, UsageError
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.losses import audio_targets, contrastive_logits, finetune_loss, pretrain_loss, video_targets
from hicmae.model.official import load_official
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.train.optim import learning_rate, parameter_groups

OUTPUT, LOSS, GRADIENT, EXACT = 1e-4, 1e-5, 1e-3, 1e-9  # tolerances; what each is relative to stands in the functions below
_DAMAGED = (  # what the functions below, numpy and torch raise for values that are not those of a reference file
    *(OSError, EOFError, zipfile.BadZipFile),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, HicmaeError),
)
TINY_GRADIENT = 1e-5  # of the largest: a gradient that is 0 on paper is rounding noise in both programs


@dataclass(frozen=True)
class Check:
    """One compared quantity: the largest difference, what it is relative to, and where it was found."""

    file: str
    quantity: str
    difference: float
    tolerance: float
    where: str = ""
    below_floor: int = 0  # gradients smaller than TINY_GRADIENT of the largest: their difference is relative to that floor

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance  # NaN does not pass


def check_folder(folder: Path) -> list[Check]:
    """Every check for which the folder has numbers. Raises UsageError when it has none, HicmaeError for a damaged file."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; name a folder of reference numbers")
    found = [(check, path) for pattern, check in CHECKS.items() for path in sorted(folder.glob(pattern))]
    if not found:
        raise UsageError(f"{folder}: holds no reference numbers; a folder needs one of {', '.join(CHECKS)}")
    return [result for check, path in found for result in _checked(check, path)]


def _checked(check: Callable[[Path], list[Check]], path: Path) -> list[Check]:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of numpy and torch, about values that the comparison shows to differ
            checks = check(path)
    except _DAMAGED as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise HicmaeError(f"{path}: is not a file of reference numbers ({reason:.200}); copy it again") from None
    if not checks:
        raise HicmaeError(f"{path}: holds no numbers to compare; copy it again")
    return checks


def check_pretrain(path: Path) -> list[Check]:
    """Predictions, contrastive logits, targets, losses and gradients of the pre-training model."""
    arrays, config = _read(path)
    model = pretrain_model(arrays, config)
    load_official(model, _weights(arrays))
    video, audio = _tensor(arrays, "video"), _tensor(arrays, "audio")
    output = model(video, audio, _tensor(arrays, "mask_video"), _tensor(arrays, "mask_audio"))
    losses = pretrain_loss(output, {"video": video, "audio": audio}, model.objective, model.encoder_config)
    losses["loss"].backward()
    if output.video_levels is None or output.audio_levels is None:
        raise ValueError("loss_weight 0 switches the contrast off, whose logits are compared")
    encoder, group = model.encoder_config, config["frame_diff_group"]
    plain = video_targets(video, encoder, output.hidden_video)
    compared = {
        "pred_video": output.pred_video,
        "pred_audio": output.pred_audio,
        "logits": contrastive_logits(output.video_levels, output.audio_levels, model.objective.temperature),
        "target_video": plain,
        "target_video_framediff": video_targets(video, encoder, output.hidden_video, group),
        "target_audio": audio_targets(audio, encoder, output.hidden_audio),
    }
    named_losses = {
        "loss_video": nn.functional.mse_loss(output.pred_video, plain),
        "loss_video_framediff": losses["loss_video"],
        "loss_audio": losses["loss_audio"],
        "loss_contrastive": losses["loss_contrastive"],
        "loss_total": losses["loss"],
    }
    return _model_checks(path, arrays, model, compared, named_losses)


def check_finetune(path: Path) -> list[Check]:
    """Features, logits, loss and gradients of the fine-tuning model."""
    arrays, config = _read(path)
    model = HiCMAEClassifier(encoder_config(config), HeadConfig(outputs=config["num_classes"]))
    load_official(model, _weights(arrays))
    features = model.features(_tensor(arrays, "video"), _tensor(arrays, "audio"))
    logits = model.head(features)
    loss = finetune_loss(logits, _tensor(arrays, "labels"), model.head_config)
    loss.backward()
    return _model_checks(path, arrays, model, {"features": features, "logits": logits}, {"loss": loss})


def check_param_groups(path: Path) -> list[Check]:
    """Learning-rate scale and weight decay of every parameter of the fine-tuning model (layer decay)."""
    wanted = json.loads(path.read_text())
    model = _sized_like(wanted["groups"])
    optim = OptimConfig(weight_decay=wanted["weight_decay"], layer_decay=wanted["layer_decay"])
    groups = parameter_groups(model.named_parameters(), optim, model.encoder_config)
    ours = {name: group for group in groups for name in group.names}
    rows = [(name, group) for group in wanted["groups"] for name in group["names"]]
    names = Check(path.name, "names that differ", float(len({name for name, _ in rows} ^ set(ours))), 0)
    scales = [(name, _relative(ours[name].lr_scale, group["lr_scale"])) for name, group in rows if name in ours]
    decays = [(name, _relative(ours[name].weight_decay, group["weight_decay"])) for name, group in rows if name in ours]
    return [names, _worst(path, "lr_scale", scales, EXACT), _worst(path, "weight_decay", decays, EXACT)]


def check_lr_schedules(path: Path) -> list[Check]:
    """The learning rate of every listed step and the sum over all steps."""
    checks = []
    for name, plan in json.loads(path.read_text()).items():
        optim = OptimConfig(  # the files give scaled rates; a batch of 256 keeps them
            base_lr=plan["base_lr"],
            base_min_lr=plan["min_lr"],
            batch_size=256,
            epochs=plan["epochs"],
            warmup_epochs=plan["warmup_epochs"],
        )
        ours = [learning_rate(step, plan["steps_per_epoch"], optim) for step in range(plan["num_steps"])]
        differences = [(f"step {step}", _relative(ours[int(step)], lr)) for step, lr in plan["steps"].items()]
        differences.append(("sum", _relative(sum(ours), plan["sum"])))
        checks.append(_worst(path, name, differences, EXACT))
    return checks


def check_fbank(path: Path) -> list[Check]:
    """Normalised log-mel features of waveforms that are shorter, equal and longer than the input."""
    arrays = _arrays(path)
    checks = []
    for name in sorted({key.split("/")[0] for key in arrays}):
        wanted = arrays[f"{name}/fbank"]
        ours = fbank(torch.from_numpy(arrays[f"{name}/wave"])[0], *wanted.shape)
        checks.append(Check(path.name, name, _largest(ours.numpy(), wanted), OUTPUT))
    return checks


def check_frame_plans(path: Path) -> list[Check]:
    """Frames and sound interval of test views, and frames of short clips in training: equal, number by number."""
    plans, wrong = json.loads(path.read_text()), []
    for name, views in plans["test_views"].items():
        count, stride = int(name.split("_")[0]), int(name.split("_")[-1])
        ours = test_views(count, len(views[0]["frames"]), stride, len(views))
        if [[*v["frames"], v["audio_first_frame"], v["audio_last_frame"]] for v in views] != [
            [*plan.frames, plan.first, plan.last] for plan in ours
        ]:
            wrong.append(name)
    for name, frames in plans["train_short_clips"].items():
        count, stride = int(name.split("_")[0]), int(name.split("_")[-1])
        if list(train_plan(count, len(frames), stride, np.random.default_rng(0)).frames) != frames:
            wrong.append(name)
    compared = len(plans["test_views"]) + len(plans["train_short_clips"])
    return [Check(path.name, "plans that differ", float(len(wrong)), 0, ", ".join(wrong))] if compared else []


def check_metrics(path: Path) -> list[Check]:
    """Merged views and their predictions, recognition metrics, the confusion matrix, regression metrics."""
    arrays = _arrays(path)
    labels, predictions = arrays["labels"], metrics.merge_views(arrays["view_logits"]).argmax(1)
    checks = [Check(path.name, "predictions that differ", float((predictions != arrays["predictions"]).sum()), 0)]
    names = {"uar": "UAR", "war": "WAR", "weighted_f1": "WF1", "micro_f1": "micro_F1", "macro_f1": "macro_F1"}
    for key, name in names.items():
        ours = metrics.compute([name], labels, predictions)[name] / 100
        checks.append(Check(path.name, name, _relative(ours, float(arrays[key])), EXACT))
    counts = np.abs(metrics.confusion(labels, predictions, len(arrays["confusion"])) - arrays["confusion"])
    checks.append(Check(path.name, "confusion", float(counts.sum()), 0))
    for name in ("pcc", "ccc", "mae", "rmse"):
        ours = metrics.METRICS[name.upper()](arrays["reg_target"], arrays["reg_output"])
        percent = 100 if name in ("pcc", "ccc") else 1
        checks.append(Check(path.name, name.upper(), _largest(ours / percent, arrays[name]), EXACT))
    return checks


CHECKS: dict[str, Callable[[Path], list[Check]]] = {
    "pretrain_*.npz": check_pretrain,
    "finetune_*.npz": check_finetune,
    "finetune_param_groups.json": check_param_groups,
    "lr_schedules.json": check_lr_schedules,
    "fbank.npz": check_fbank,
    "frame_plans.json": check_frame_plans,
    "metrics.npz": check_metrics,
}


def encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """The encoder of a reference file's `config`."""
    return EncoderConfig(
        dim=config["encoder_dim"],
        heads=config["encoder_heads"],
        depth=config["encoder_depth"],
        fusion_depth=config["fusion_depth"],
        fusion_heads=config["fusion_heads"],
        image_px=config["image_size"],
        patch_px=config["patch"],
        frames=config["num_frames"],
        tubelet_frames=config["tubelet"],
        audio_frames=config["audio_size"][0],
        mel_bins=config["audio_size"][1],
        norm_eps=config["layernorm_eps"],
    )


def pretrain_model(arrays: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> HiCMAEPretrain:
    """The model of a pre-training reference file; the mask ratios are read off its masks, skip layers are counted from 0."""
    decoder = DecoderConfig(dim=config["decoder_dim"], heads=config["decoder_heads"], depth=config["decoder_depth"])
    if not all(0 <= layer < config["encoder_depth"] for layer in config["skip_layers"]):
        raise ValueError(f"skip_layers {config['skip_layers']} lie outside the encoder's {config['encoder_depth']} layers")
    ratios = [(arrays[name][0].sum() + 0.5) / arrays[name].shape[1] for name in ("mask_video", "mask_audio")]
    objective = ObjectiveConfig(
        levels=tuple(layer + 1 for layer in config["skip_layers"]),
        contrastive_weight=config["loss_weight"],
        temperature=config["temperature"],
        video_mask="random",
        video_mask_ratio=float(ratios[0]),
        audio_mask_ratio=float(ratios[1]),
        frame_difference_group=config["frame_diff_group"],
    )
    return HiCMAEPretrain(encoder_config(config), decoder, objective)


def _model_checks(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    model: nn.Module,
    outputs: Mapping[str, Tensor],
    losses: Mapping[str, Tensor],
) -> list[Check]:
    """Outputs relative to the largest value, losses relative, gradients (sums of absolute values) relative, or to a floor."""
    checks = [Check(path.name, name, _largest(output.detach().numpy(), arrays[name]), OUTPUT) for name, output in outputs.items()]
    checks += [Check(path.name, name, _relative(loss.item(), float(arrays[name])), LOSS) for name, loss in losses.items()]
    wanted = {name: float(arrays[f"grad_abs_sum/{name}"]) for name, _ in model.named_parameters()}
    floor = TINY_GRADIENT * max(value for value in wanted.values() if np.isfinite(value))
    gradients = ((name, _gradient(value), wanted[name]) for name, value in model.named_parameters())
    differences = [(name, abs(ours - other) / max(other, floor)) for name, ours, other in gradients]
    below = sum(value < floor for value in wanted.values())
    worst = _worst(path, f"{len(differences)} gradients", differences, GRADIENT)
    return [*checks, replace(worst, below_floor=below)]


def _gradient(value: nn.Parameter) -> float:
    return float("nan") if value.grad is None else value.grad.abs().sum().item()


def _sized_like(groups: Iterable[Mapping[str, Any]]) -> HiCMAEClassifier:
    """A fine-tuning model with the depths that the names of a reference file show; widths do not matter to the groups."""
    names = [name for group in groups for name in group["names"]]
    depth, fusion = (1 + max(int(n.split(".")[2]) for n in names if n.startswith(p)) for p in _BLOCKS)
    small = EncoderConfig(
        dim=16, heads=1, depth=depth, fusion_depth=fusion, fusion_heads=1, image_px=16, audio_frames=16, mel_bins=16
    )
    return HiCMAEClassifier(small, HeadConfig())


_BLOCKS = ("encoder.blocks.", "encoder_fusion.blocks.")


def _worst(path: Path, quantity: str, differences: Iterable[tuple[str, float]], tolerance: float) -> Check:
    """The largest of some differences; NaN counts as the largest."""
    where, value = max(differences, key=lambda item: np.inf if np.isnan(item[1]) else item[1])
    return Check(path.name, quantity, value, tolerance, where)


def _largest(ours: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest difference, relative to the largest value."""
    if ours.shape != wanted.shape:
        return float("inf")
    return float(np.abs(ours - wanted).max() / np.abs(wanted).max())


def _relative(ours: float, wanted: float) -> float:
    return abs(ours - wanted) / abs(wanted) if wanted else abs(ours)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    arrays = _arrays(path)
    return arrays, json.loads(str(arrays["config"]))


def _weights(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name[2:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("w/")}


def _tensor(arrays: Mapping[str, NDArray[Any]], name: str) -> Tensor:
    return torch.from_numpy(arrays[name])
