"""The method equals the authors' release, number by number, on every reference file that is present."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hicmae.errors import HicmaeError, UsageError
from hicmae.parity import Check, check_finetune, check_folder, check_metrics, check_pretrain

GOLDEN = Path(__file__).parent / "golden"


def failed(checks: list[Check]) -> list[Check]:
    return [check for check in checks if not check.passed]


def changed(tmp_path: Path, name: str, **arrays: np.ndarray) -> Path:
    """A copy of a golden file with some arrays replaced."""
    with np.load(GOLDEN / name) as file:
        content = {key: file[key] for key in file.files}
    np.savez(tmp_path / name, **{**content, **arrays})
    return tmp_path / name


def test_pretraining_equals_the_release() -> None:
    checks = check_pretrain(GOLDEN / "pretrain_tiny.npz")
    assert failed(checks) == []
    assert {check.quantity for check in checks} >= {"pred_video", "pred_audio", "logits", "loss_total", "384 gradients"}


def test_finetuning_equals_the_release() -> None:
    checks = check_finetune(GOLDEN / "finetune_tiny.npz")
    assert failed(checks) == []
    assert {check.quantity for check in checks} == {"features", "logits", "loss", "214 gradients"}


def test_metrics_equal_the_release() -> None:
    assert failed(check_metrics(GOLDEN / "metrics.npz")) == []


def test_everything_in_the_golden_folder_equals_the_release() -> None:
    checks = check_folder(GOLDEN)
    assert failed(checks) == []
    assert {check.file for check in checks} == {path.name for path in GOLDEN.glob("*.*") if path.name in _REFERENCE_FILES}


_REFERENCE_FILES = {
    "pretrain_tiny.npz",
    "finetune_tiny.npz",
    "metrics.npz",
    "finetune_param_groups.json",
    "lr_schedules.json",
    "frame_plans.json",
}


def test_other_sizes_and_skip_layers_equal_the_release(reference: Path) -> None:
    checks = check_folder(reference / "official")
    assert failed(checks) == []
    assert {"pretrain_small.npz", "finetune_small.npz", "fbank.npz"} <= {check.file for check in checks}


@pytest.mark.parametrize("weight", ["w/encoder.blocks.2.attn.q_bias", "w/decoder_audio.blocks.3.norm2.bias"])
def test_a_changed_weight_is_noticed(tmp_path: Path, weight: str) -> None:
    with np.load(GOLDEN / "pretrain_tiny.npz") as file:
        moved = file[weight] + 0.05
    assert failed(check_pretrain(changed(tmp_path, "pretrain_tiny.npz", **{weight: moved})))


def test_a_gradient_beyond_tolerance_is_named(tmp_path: Path) -> None:
    with np.load(GOLDEN / "finetune_tiny.npz") as file:
        larger = file["grad_abs_sum/head.weight"] * 1.002
    path = changed(tmp_path, "finetune_tiny.npz", **{"grad_abs_sum/head.weight": larger})
    assert [check.where for check in failed(check_finetune(path))] == ["head.weight"]


def test_tiny_gradients_are_counted() -> None:
    with np.load(GOLDEN / "finetune_tiny.npz") as file:
        sums = np.array([file[name] for name in file.files if name.startswith("grad_abs_sum/")])
    (gradients,) = (check for check in check_finetune(GOLDEN / "finetune_tiny.npz") if check.below_floor)
    assert gradients.quantity == f"{len(sums)} gradients"
    assert gradients.below_floor == (sums < 1e-5 * sums.max()).sum() > 0


def test_not_a_number_does_not_pass() -> None:
    assert not Check("f", "q", float("nan"), 1e-4).passed


def test_a_folder_without_reference_numbers_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no reference numbers"):
        check_folder(tmp_path)
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        check_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file: is a file; name a folder"):
        check_folder(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "finetune_tiny.npz"
    if content is None:
        shutil.copy(GOLDEN / "finetune_tiny.npz", path)
        path.write_bytes(path.read_bytes()[:100_000])
    else:
        path.write_bytes(content)
    with pytest.raises(HicmaeError, match=r"finetune_tiny.npz: is not a file of reference numbers"):
        check_folder(tmp_path)


CONFIGS: dict[str, object] = {
    "loss_weight": 0.0,
    "frame_diff_group": 3,
    "skip_layers": [0],
    "skip_layers ": [1, 99],
    "audio_size": 32,
    "encoder_heads": 3,
    "encoder_dim": "a",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_no_model_has_is_named(tmp_path: Path, name: str) -> None:
    with np.load(GOLDEN / "pretrain_tiny.npz") as file:
        config = {**json.loads(str(file["config"])), name.strip(): CONFIGS[name]}
    changed(tmp_path, "pretrain_tiny.npz", config=np.array(json.dumps(config)))
    refused(tmp_path, "pretrain_tiny.npz")


ARRAYS: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = {
    "a config that is a list": ("pretrain_tiny.npz", "config", lambda _: np.array("[]")),
    "a mask that hides nothing": ("pretrain_tiny.npz", "mask_video", np.zeros_like),
    "too few frames": ("pretrain_tiny.npz", "video", lambda video: video[:, :, :1]),
    "a weight that does not fit": ("pretrain_tiny.npz", "w/mask_token", lambda token: token[0]),
    "a label beyond the classes": ("finetune_tiny.npz", "labels", lambda labels: labels + 99),
    "labels of 32 bits": ("finetune_tiny.npz", "labels", lambda labels: labels.astype("i4")),
    "a vector as a loss": ("finetune_tiny.npz", "loss", lambda _: np.zeros(3)),
    "labels of other samples": ("metrics.npz", "labels", lambda labels: labels[:-1]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_fit_no_model_are_named(tmp_path: Path, name: str) -> None:
    file, key, change = ARRAYS[name]
    with np.load(GOLDEN / file) as content:
        changed(tmp_path, file, **{key: change(content[key])})
    refused(tmp_path, file)


TABLES: dict[str, tuple[str, Callable[[dict], object]]] = {
    "a list of schedules": ("lr_schedules.json", lambda _: []),
    "no schedule": ("lr_schedules.json", lambda _: {}),
    "a step beyond the end": (
        "lr_schedules.json",
        lambda plans: [plan["steps"].update({"99999999": 0.5}) for plan in plans.values()],
    ),
    "a list of groups": ("finetune_param_groups.json", lambda _: [1]),
    "no group": ("finetune_param_groups.json", lambda table: table["groups"].clear()),
    "no plan": ("frame_plans.json", lambda _: {"test_views": {}, "train_short_clips": {}}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_hold_nothing_to_compare_do_not_pass(tmp_path: Path, name: str) -> None:
    file, change = TABLES[name]
    table = json.loads((GOLDEN / file).read_text())
    other = change(table)
    (tmp_path / file).write_text(json.dumps(table if "step" in name or name == "no group" else other))
    refused(tmp_path, file)


def refused(folder: Path, file: str) -> None:
    """A damaged file is no bad usage: exit 1, one line that names it, no warning beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(HicmaeError) as caught:
            check_folder(folder)
    assert caught.value.exit_code == 1
    assert str(caught.value).startswith(f"{folder / file}: ")
    assert "\n" not in str(caught.value)


def test_a_gradient_that_is_no_number_fails_and_is_named(tmp_path: Path) -> None:
    path = changed(tmp_path, "pretrain_tiny.npz", **{"grad_abs_sum/mask_token": np.float32(np.nan)})
    assert [check.where for check in failed(check_pretrain(path))] == ["mask_token"]


def test_a_file_whose_config_lacks_a_size_is_named(tmp_path: Path) -> None:
    with np.load(GOLDEN / "finetune_tiny.npz") as file:
        config = json.loads(str(file["config"]))
    del config["encoder_heads"]
    changed(tmp_path, "finetune_tiny.npz", config=np.array(json.dumps(config)))
    with pytest.raises(HicmaeError, match="encoder_heads"):
        check_folder(tmp_path)
