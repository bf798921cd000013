"""The engine: one training, the same on 1 and 2 real processes and in every ZeRO stage, with whole states that move between them.

engine_worker.py trains the cases below on a tiny fine-tuning model, in one process and, over gloo, in two.
Tolerance: losses to 2e-6 (two units in the last place of float32), weights to 1e-5 after five steps with learning rates up to
3e-3. What differs is the order in which float32 numbers are added.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_worker import Case, batch_of, config_of
from forge import forge
from safetensors.torch import load_file
from torch import Tensor

from hicmae.errors import DivergedError
from hicmae.train import objective, optim
from hicmae.train.engine import LossScale

pytestmark = pytest.mark.xdist_group("engine")  # its fixtures are made once

STAGES = (0, 1, 2, 3)
BASE = Case("base", clip=1.0, ema=0.9)
TOGETHER = [
    *(replace(BASE, name=f"zero{stage}", stage=stage) for stage in STAGES),
    *(replace(BASE, name=f"accumulated{stage}", stage=stage, accumulation=2) for stage in (0, 2, 3)),
    *(replace(BASE, name=f"half{stage}", stage=stage, steps=3) for stage in STAGES),
    *(
        replace(BASE, name=f"resumed{old}{new}", stage=new, first_step=3, steps=2, start=f"half{old}")
        for old, new in ((0, 0), (0, 3), (3, 1), (1, 2), (2, 0), (3, 3))
    ),
    *(Case(f"pretrained{stage}", stage=stage, steps=3, pretrain=True) for stage in STAGES),
    *(Case(f"concordance{stage}", stage=stage, concordance=True) for stage in (0, 3)),
]
ALONE = [
    *(
        case
        for case in TOGETHER
        if case.name in ("zero0", "zero1", "zero2", "zero3", "accumulated0", "half0", "resumed00", "concordance0")
    ),
    *(Case(f"checkpointed{stage}", stage=stage, checkpointing=True) for stage in (0, 3)),
    Case("fp320"),
    *(Case(f"{precision}{stage}", stage=stage, precision=precision) for precision in ("bf16", "fp16") for stage in (0, 2)),
]
CASES = {1: ALONE, 2: TOGETHER}  # by number of processes
SAME = [
    (case.name, count) for count, cases in CASES.items() for case in cases if case.name.startswith(("zero", "accum", "resumed"))
]
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of results of all cases, by number of processes."""
    folders = {count: tmp_path_factory.mktemp(f"processes{count}") for count in (1, 2)}
    for count, folder in folders.items():
        (folder / "cases.json").write_text(json.dumps([asdict(case) for case in CASES[count]]))
        start = functools.partial(forge().start, "engine_worker:main", [str(folder)], folder / "log")
        several = functools.partial(forge().start_several, count, "engine_worker:main", [str(folder)], folder / "log")
        processes = [start()] if count == 1 else several()
        assert [process.wait() for process in processes] == [0] * count, (folder / "log").read_text()[-3000:]
    return folders


def result(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.json").read_text()))


def state(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors")


def assert_same_training(folder: Path, name: str, reference: Path, other: str = "zero0") -> None:
    ours, theirs = result(folder, name), result(reference, other)
    first = ours["case"]["first_step"]
    assert ours["losses"] == pytest.approx(theirs["losses"][first:], abs=2e-6)
    assert ours["norms"] == pytest.approx(theirs["norms"][first:], rel=1e-5)
    assert ours["progress"] == theirs["progress"]
    found, wanted = state(folder, name), state(reference, other)
    assert found.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(
            found[key], wanted[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{name}, {key}: {text}"
        )


def by_hand() -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """The same training in plain torch: losses, weights, averaged weights."""
    config = config_of(BASE)
    model = objective.build_model(config)
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    groups = optim.parameter_groups(model.named_parameters(), config.optim, config.encoder)
    optimiser = torch.optim.AdamW(
        [{"params": g.params, "weight_decay": g.weight_decay, "scale": g.lr_scale} for g in groups], betas=config.optim.betas
    )
    losses = []
    for step in range(BASE.steps):
        for group in optimiser.param_groups:
            group["lr"] = optim.learning_rate(step, 2, config.optim) * group["scale"]
        batch = batch_of(step)
        loss = torch.nn.functional.cross_entropy(model(batch["video"], batch["audio"]), batch["label"], label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        for name, value in model.named_parameters():
            average[name] = 0.9 * average[name] + 0.1 * value.detach()
        losses.append(loss.item())
    return losses, dict(model.named_parameters()), average


def test_training_is_what_plain_torch_makes_of_it(runs: dict[int, Path]) -> None:
    losses, weights, average = by_hand()
    assert result(runs[1], "zero0")["losses"] == pytest.approx(losses, abs=2e-6)
    found = state(runs[1], "zero0")
    for name, value in weights.items():
        torch.testing.assert_close(found[f"model/{name}"], value.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[f"ema/{name}"], average[name], rtol=1e-4, atol=1e-5)
    moved = max(float((found[f"model/{n}"] - found[f"ema/{n}"]).abs().max()) for n in weights)
    assert moved > 1e-3  # the tolerance tells averaged weights from weights


@pytest.mark.parametrize(("name", "processes"), SAME)
def test_processes_stages_accumulation_and_resuming_change_nothing(runs: dict[int, Path], name: str, processes: int) -> None:
    assert_same_training(runs[processes], name, runs[1])


@pytest.mark.parametrize("stage", [0, 3])
def test_concordance_is_that_of_the_whole_batch(runs: dict[int, Path], stage: int) -> None:
    """The mean of the processes' own concordances would be another figure."""
    assert_same_training(runs[2], f"concordance{stage}", runs[1], "concordance0")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_pre_train_the_same_with_the_negatives_of_one_process(runs: dict[int, Path], stage: int) -> None:
    """Other numbers of processes have other negatives, so two are compared with two."""
    assert_same_training(runs[2], f"pretrained{stage}", runs[2], "pretrained0")
    losses = result(runs[2], "pretrained0")["losses"]
    assert len(set(losses)) == len(losses) == 3


def test_resuming_in_one_process_is_bit_identical(runs: dict[int, Path]) -> None:
    uninterrupted, resumed = state(runs[1], "zero0"), state(runs[1], "resumed00")
    assert all(torch.equal(uninterrupted[key], resumed[key]) for key in uninterrupted)


@pytest.mark.parametrize("name", ["checkpointed0", "checkpointed3"])
def test_activation_checkpointing_changes_nothing(runs: dict[int, Path], name: str) -> None:
    assert_same_training(runs[1], name, runs[1], "fp320")


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_close_to_full_precision(runs: dict[int, Path], precision: str, stage: int) -> None:
    full, half = result(runs[1], "fp320"), result(runs[1], f"{precision}{stage}")
    first = result(runs[1], f"{precision}0")
    assert half["losses"] != full["losses"]
    assert half["losses"][:2] == pytest.approx(full["losses"][:2], rel=0.02)
    assert half["losses"] == pytest.approx(first["losses"], abs=2e-3)
    assert all(value.dtype == torch.float32 for value in state(runs[1], f"{precision}{stage}").values())


def test_fp16_scales_the_loss_and_keeps_the_scale_for_resuming(runs: dict[int, Path]) -> None:
    for stage in (0, 2):
        made = result(runs[1], f"fp16{stage}")
        overflows = sum(norm == float("inf") for norm in made["norms"])
        assert made["progress"]["loss_scale"] == 2.0 ** (16 - overflows)
        assert made["progress"]["adam_step"] == 5 - overflows


def test_the_loss_scale_halves_on_overflow_doubles_with_patience_and_gives_up_at_one() -> None:
    scale = LossScale(value=4.0, patience=3)
    for overflow, expected in [(True, 2.0), (False, 2.0), (False, 2.0), (False, 4.0), (False, 4.0), (True, 2.0), (True, 1.0)]:
        scale.update(overflow)
        assert scale.value == expected
    with pytest.raises(DivergedError, match="loss scale of 1"):
        scale.update(True)
