"""The configuration: what is refused, what counts as equal, and that run ids never move by accident."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.data.auto_augment import rand_augment_transform

from hicmae import presets
from hicmae.config import (
    AugmentConfig,
    Checked,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    EvaluationConfig,
    FinetuneConfig,
    HeadConfig,
    InitialWeights,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    canonical_json,
    change,
    differences,
    flatten,
    from_dict,
    run_id,
    to_dict,
)
from hicmae.errors import ConfigError, UsageError

GOLDEN = Path(__file__).parent / "golden" / "run_ids.json"
SIZES = ("tiny", "small", "base", "smoke")


def golden_configs() -> dict[str, RunConfig]:
    """The published recipes whose run ids are pinned."""
    configs: dict[str, RunConfig] = {f"pretrain {size}": presets.pretrain(size, "synthetic") for size in SIZES}
    configs |= {f"finetune {size}": presets.finetune(size, "synthetic", 4) for size in SIZES}
    configs["regression base"] = presets.finetune_regression("base")
    configs["finetune from a run"] = change(presets.finetune("base"), {"initial": InitialWeights("run", "0" * 16)})
    return configs


def test_run_ids_stay_what_they_are() -> None:
    found = {name: run_id(config) for name, config in golden_configs().items()}
    assert found == json.loads(GOLDEN.read_text()), (
        "a default, a field or a recipe changed, so recorded runs no longer count as done; if that is intended, "
        "renew the file with: python tests/test_config.py"
    )


def test_equal_configurations_have_equal_ids_in_another_process() -> None:
    code = "from hicmae import presets; from hicmae.config import run_id; print(run_id(presets.pretrain('smoke', 'synthetic')))"
    for hash_seed in ("0", "1"):
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert ended.stdout.strip() == run_id(presets.pretrain("smoke", "synthetic"))


changes = st.fixed_dictionaries(
    {},
    optional={
        "objective.temperature": st.floats(1e-3, 10),
        "objective.contrastive": st.sampled_from(["none", "last", "hierarchical"]),
        "objective.contrastive_weight": st.sampled_from([0, 0.0, 0.0025, 1]),
        "optim.epochs": st.integers(8, 1000),
        "optim.clip_grad_norm": st.none() | st.integers(0, 5),
        "decoder.skip_connections": st.booleans(),
        "data.fingerprint": st.text(max_size=20),
        "keep_epochs": st.lists(st.integers(1, 6), max_size=3, unique=True).map(sorted),
        "seed": st.integers(0, 2**31),
    },
)


@given(changes)
def test_json_and_back_is_the_same_configuration(delta: dict[str, Any]) -> None:
    config = change(presets.pretrain("smoke"), delta)
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert run_id(again) == run_id(config)


@given(changes, changes)
def test_ids_differ_exactly_where_configurations_do(first: dict[str, Any], second: dict[str, Any]) -> None:
    old, new = (change(presets.pretrain("smoke"), delta) for delta in (first, second))
    assert (run_id(old) == run_id(new)) == (old == new) == (differences(old, new) == {})


@given(changes)
def test_differences_are_exactly_what_turns_one_into_the_other(delta: dict[str, Any]) -> None:
    base = presets.pretrain("smoke")
    changed = change(base, delta)
    assert change(base, {name: new for name, (_, new) in differences(base, changed).items()}) == changed


def test_every_field_counts() -> None:
    """No field may change a run without changing its id: each one is moved to another allowed value."""
    for base in (presets.pretrain("smoke"), presets.finetune("smoke")):
        moved = {name: _moved(base, name, value) for name, value in flatten(base).items()}
        unmoved = [name for name, config in moved.items() if config is None]
        fixed = {"pretrain": ["stage", "data.sampling"], "finetune": ["stage"]}  # pre-training has no classes to stratify by
        assert unmoved == fixed[base.stage]
        ids = [run_id(config) for config in moved.values() if config is not None]
        assert run_id(base) not in ids


def _moved(base: Checked, name: str, value: Any) -> Any:
    """The base with one field changed to the first candidate that is allowed."""
    candidates: list[Any] = [
        1,
        2,
        4,
        3,
        5,
        8,
        16,
        32,
        64,
        128,
        0,
        0.5,
        0.25,
        0.7,
        0.01,
        True,
        False,
        "",
        "0",
        (1,),
        (2, 3),
        (0.5,),
        (0.8, 0.9),
    ]
    words = [
        "none",
        "last",
        "tube",
        "random",
        "time",
        "A",
        "bf16",
        "validation",
        "three",
        "audio_first",
        "run",
        "x",
        "regression",
        "mse",
        "stratified",
        "random_resized",
    ]
    extra: dict[str, dict[str, Any]] = {
        "decoder.depth": {"decoder.depth": 2, "objective.levels": (4,)},
        "initial.source": {"initial.source": "run", "initial.reference": "x"},
        "initial.reference": {"initial.source": "run", "initial.reference": "y"},
        "initial.epoch": {"initial.source": "run", "initial.reference": "x", "initial.epoch": 1},
        "augment.rand_augment": {"augment.rand_augment": "rand-m7"},
        "head.task": {"head.task": "regression", "head.loss": "mse"},
        "head.loss": {"head.task": "regression", "head.loss": "ccc"},
    }
    for delta in [*([extra[name]] if name in extra else []), *({name: item} for item in candidates + words)]:
        try:
            config: Any = change(base, delta)
        except UsageError:
            continue
        if flatten(config)[name] != value:
            return config
    return None


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: EncoderConfig(dim=100, heads=8), ["dim = 100", "heads = 8"]),
        (lambda: EncoderConfig(image_px=100), ["image_px = 100", "patch_px = 16"]),
        (lambda: EncoderConfig(frames=15), ["frames = 15", "tubelet_frames = 2"]),
        (lambda: EncoderConfig(fusion_flow="sideways"), ["fusion_flow = 'sideways'", "parallel, audio_first, video_first"]),
        (lambda: EncoderConfig(depth=0), ["depth = 0", "at least 1"]),
        (lambda: EncoderConfig(dim="512"), ["dim = '512'", "int"]),
        (lambda: EncoderConfig(mlp_ratio=float("nan")), ["mlp_ratio = nan"]),
        (lambda: DecoderConfig(dim=100, heads=8), ["dim = 100", "heads = 8"]),
        (lambda: ObjectiveConfig(levels=(7, 4, 10)), ["levels = (7, 4, 10)", "rising"]),
        (lambda: ObjectiveConfig(video_mask_ratio=1.5), ["video_mask_ratio = 1.5", "between 0 and 1"]),
        (lambda: PretrainConfig(objective=ObjectiveConfig(levels=(4, 7, 11))), ["levels", "10 layers"]),
        (lambda: PretrainConfig(objective=ObjectiveConfig(levels=(4, 7))), ["levels", "one level per decoder block"]),
        (lambda: PretrainConfig(objective=ObjectiveConfig(video_mask_ratio=1.0)), ["video_mask_ratio = 1.0", "leave at least 1"]),
        (lambda: PretrainConfig(objective=ObjectiveConfig(audio_mask_ratio=0.0)), ["audio_mask_ratio = 0.0", "at least 1"]),
        (lambda: PretrainConfig(objective=ObjectiveConfig(frame_difference_group=3)), ["frame_difference_group = 3", "divide"]),
        (lambda: PretrainConfig(optim=OptimConfig(batch_size=1)), ["batch_size = 1", "2 clips"]),
        (lambda: OptimConfig(batch_size=10, accumulation_steps=3), ["batch_size = 10", "accumulation_steps = 3"]),
        (lambda: OptimConfig(epochs=3, warmup_epochs=5), ["warmup_epochs = 5", "epochs = 3"]),
        (lambda: HeadConfig(task="regression"), ["loss = 'cross_entropy'", "mse or ccc"]),
        (lambda: HeadConfig(outputs=1), ["outputs = 1", "2 classes"]),
        (lambda: HeadConfig(modality="VA"), ["modality = 'VA'", "AV, A, V"]),
        (lambda: FinetuneConfig(head=HeadConfig("regression", 3, loss="mse")), ["mixup = 0.8", "classification"]),
        (lambda: FinetuneConfig(augment=AugmentConfig(repeats=3)), ["repeats = 3", "batch_size = 160"]),
        (lambda: InitialWeights(source="run"), ["reference = ''", "run id"]),
        (lambda: EvaluationConfig(validation_fraction=0.0), ["validation_fraction = 0.0", "between 0.01 and 0.9"]),
        (lambda: DataConfig(fold=0), ["fold = 0", "at least 1"]),
        (lambda: PretrainConfig(data=DataConfig(sampling="stratified")), ["sampling = 'stratified'", "no classes"]),
        (
            lambda: FinetuneConfig(
                head=HeadConfig("regression", 3, loss="mse"),
                augment=AugmentConfig(mixup=0.0, cutmix=0.0),
                data=DataConfig(sampling="stratified"),
            ),
            ["sampling = 'stratified'", "no classes"],
        ),
        (lambda: AugmentConfig(crop_area=(0.5, 0.2)), ["crop_area = (0.5, 0.2)", "rising shares"]),
        (lambda: AugmentConfig(crop_area=(0.5,)), ["crop_area = (0.5,)", "two"]),
        (lambda: AugmentConfig(interpolation="cubic"), ["interpolation = 'cubic'", "bicubic"]),
        (lambda: AugmentConfig(crop_scales=()), ["AugmentConfig.crop_scales = ()", "at least one"]),
        (lambda: AugmentConfig(crop_scales=(1.0, 1.5)), ["crop_scales = (1.0, 1.5)", "up to 1"]),
        (lambda: AugmentConfig(crop_scales=(0.0,)), ["crop_scales = (0.0,)", "above 0"]),
        (lambda: OptimConfig(betas=(0.9,)), ["OptimConfig.betas = (0.9,)", "two numbers"]),  # type: ignore[arg-type]
        (lambda: OptimConfig(betas=(0.9, 1.0)), ["betas = (0.9, 1.0)", "below 1"]),
        (lambda: OptimConfig(betas=(-0.1, 0.9)), ["betas = (-0.1, 0.9)", "from 0"]),
        (lambda: PretrainConfig(keep_epochs=(2, 1)), ["PretrainConfig.keep_epochs = (2, 1)", "rising"]),
        (lambda: PretrainConfig(keep_epochs=(0, 5)), ["keep_epochs = (0, 5)", "from 1"]),
        (lambda: PretrainConfig(keep_epochs=(50, 101)), ["keep_epochs = (50, 101)", "epochs = 100"]),
        (lambda: EncoderConfig(patch_px=1), ["EncoderConfig.patch_px = 1", "at least 2"]),
        (lambda: InitialWeights(epoch=3), ["InitialWeights.epoch = 3", "scratch"]),
        (
            lambda: FinetuneConfig(optim=OptimConfig(batch_size=12, accumulation_steps=4)),
            ["OptimConfig.batch_size = 12", "batch_size / accumulation_steps must be even"],
        ),
        (lambda: concordance(batch_size=1), ["OptimConfig.batch_size = 1", "at least 2 clips in a step"]),
        (lambda: concordance(batch_size=4, accumulation_steps=4), ["OptimConfig.batch_size = 4", "each accumulation step"]),
        (lambda: EncoderConfig(heads=0), ["EncoderConfig.heads = 0: must be at least 1"]),
        (lambda: change(FinetuneConfig(), {"augment.crop_scales": 1}), ["AugmentConfig.crop_scales = 1: must be a list"]),
    ],
)
def test_a_configuration_that_cannot_run_is_refused_with_field_value_and_rule(build: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        build()
    assert all(word in str(refused.value) for word in words), refused.value
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def concordance(**optim: int) -> FinetuneConfig:
    augment = AugmentConfig(mixup=0.0, cutmix=0.0)
    return FinetuneConfig(head=HeadConfig("regression", 2, loss="ccc"), augment=augment, optim=OptimConfig(**optim))


def test_what_mixing_and_concordance_need_is_asked_of_nothing_else() -> None:
    odd = OptimConfig(batch_size=7)
    FinetuneConfig(optim=odd, head=HeadConfig(modality="A"))  # nothing is mixed without video
    FinetuneConfig(optim=odd, augment=AugmentConfig(mixup=0.0, cutmix=0.0))
    concordance(batch_size=8, accumulation_steps=4)


@pytest.mark.parametrize(
    "policy", ["rand-m7-n4-mstd0.5-inc1", "rand", "rand-m9-mmax20-p1.0-tweights", "rand-n2-t3a", "rand-inc0"]
)
def test_a_policy_that_timm_understands_is_allowed(policy: str) -> None:
    assert rand_augment_transform(AugmentConfig(rand_augment=policy).rand_augment, {}) is not None


@pytest.mark.parametrize(
    "policy", ["foo", "rand-mX-n4", "rand-m", "rand-m7.5", "rand-w0", "rand-m7-", "much", "rand-tall", "rand\n"]
)
def test_a_policy_that_timm_refuses_or_passes_over_is_refused(policy: str) -> None:
    with pytest.raises(ConfigError, match=r"AugmentConfig.rand_augment = .*: must be in timm's notation"):
        AugmentConfig(rand_augment=policy)


def test_an_unknown_field_is_refused_with_the_nearest_first() -> None:
    with pytest.raises(UsageError, match=r"'temprature'; valid, nearest first: temperature"):
        change(presets.pretrain(), {"objective.temprature": 1.0})
    with pytest.raises(UsageError, match=r"'encodr'; valid, nearest first: encoder"):
        from_dict({"stage": "pretrain", "encodr": {}})
    with pytest.raises(UsageError, match=r"stage 'finetun'; valid, nearest first: finetune"):
        from_dict({"stage": "finetun"})


def test_no_contrast_and_a_weight_of_zero_are_the_same_run() -> None:
    base = presets.pretrain()
    assert run_id(change(base, {"objective.contrastive": "none"})) == run_id(change(base, {"objective.contrastive_weight": 0}))


def test_whole_numbers_in_float_fields_and_lists_for_tuples_are_the_same_run() -> None:
    base = presets.pretrain()
    assert canonical_json(change(base, {"optim.weight_decay": 1})) == canonical_json(change(base, {"optim.weight_decay": 1.0}))
    assert change(base, {"keep_epochs": [1, 2]}) == change(base, {"keep_epochs": (1, 2)})


def test_rules_are_checked_after_all_changes() -> None:
    """Neither change is allowed alone: 96 is no multiple of 8 ... 12 no divisor of 512."""
    config = change(EncoderConfig(), {"dim": 108, "heads": 12, "fusion_heads": 12})
    assert (config.dim, config.heads) == (108, 12)


def renew_golden() -> None:
    """Write the golden file anew, after an intended change."""
    found = {name: run_id(config) for name, config in golden_configs().items()}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    renew_golden()
