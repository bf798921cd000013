"""What test_engine.py runs, alone or as one of several processes: train a tiny model as each case of a JSON file says.

A case names a ZeRO stage, a precision, ...; its losses go to <folder>/<name>.json, its state to <folder>/<name>.safetensors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hicmae.config import (
    AugmentConfig,
    DecoderConfig,
    EncoderConfig,
    EngineConfig,
    FinetuneConfig,
    HeadConfig,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
)
from hicmae.train import distributed, objective, optim
from hicmae.train.engine import Engine

TINY = EncoderConfig(
    dim=16, heads=2, depth=2, fusion_depth=1, fusion_heads=2, image_px=32, frames=4, audio_frames=32, mel_bins=32
)
BATCH = 8


@dataclass(frozen=True)
class Case:
    """One training; `start` names the case from whose state it goes on."""

    name: str
    stage: int = 0
    precision: str = "fp32"
    accumulation: int = 1
    clip: float | None = None
    ema: float | None = None
    checkpointing: bool = False
    first_step: int = 0
    steps: int = 5
    start: str | None = None
    pretrain: bool = False  # with the negatives of one process, as the release
    concordance: bool = False  # a regression by the ccc loss


def config_of(case: Case) -> RunConfig:
    engine = EngineConfig(precision=case.precision, zero_stage=case.stage, activation_checkpointing=case.checkpointing)
    optim_config = OptimConfig(
        base_lr=0.1,
        batch_size=BATCH,
        accumulation_steps=case.accumulation,
        epochs=20,
        warmup_epochs=1,
        layer_decay=1.0 if case.pretrain else 0.75,
        clip_grad_norm=case.clip,
        ema_decay=case.ema,
    )
    if case.concordance:
        head, plain = HeadConfig("regression", 2, loss="ccc"), AugmentConfig(mixup=0.0, cutmix=0.0)
        return FinetuneConfig(encoder=TINY, head=head, augment=plain, optim=optim_config, engine=engine)
    if not case.pretrain:
        return FinetuneConfig(encoder=TINY, head=HeadConfig(outputs=3), optim=optim_config, engine=engine)
    goal = ObjectiveConfig(levels=(1,), contrastive_weight=0.5, video_mask_ratio=0.5, audio_mask_ratio=0.5)
    return PretrainConfig(encoder=TINY, decoder=DecoderConfig(16, 2, 2), objective=goal, optim=optim_config, engine=engine)


def batch_of(step: int) -> dict[str, Tensor]:
    """The whole batch of a step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "video": torch.randn(BATCH, 3, 4, 32, 32, generator=generator),
        "audio": torch.randn(BATCH, 1, 32, 32, generator=generator),
        "label": torch.randint(3, (BATCH,), generator=generator),
        "masked_video": torch.rand(BATCH, 4, generator=generator).argsort(-1).lt(2).repeat(1, 2),
        "masked_audio": torch.rand(BATCH, 4, generator=generator).argsort(-1).lt(2),
        "targets": torch.randn(BATCH, 2, generator=generator),
    }


def micro_batches(case: Case, step: int, world: distributed.World) -> list[tuple[dict[str, Tensor], None]]:
    """This process's share of a step's batch, cut for accumulation."""
    parts = world.size * case.accumulation
    mine = {name: values.chunk(parts)[world.rank :: world.size] for name, values in batch_of(step).items()}
    return [({name: values[i] for name, values in mine.items()}, None) for i in range(case.accumulation)]


def train(case: Case, out: Path, world: distributed.World) -> dict[str, Any]:
    config = config_of(case)
    model = objective.build_model(config)
    goal = objective.build_objective(config, model)
    state = load_file(out / f"{case.start}.safetensors") if case.start else None
    progress = json.loads((out / f"{case.start}.json").read_text())["progress"] if case.start else None
    groups = optim.parameter_groups(model.named_parameters(), config.optim, config.encoder)
    engine = Engine(goal, model, groups, config.optim, config.engine, world, state, progress)
    losses, norms = [], []
    for step in range(case.first_step, case.first_step + case.steps):
        lr = optim.learning_rate(step, 2, config.optim)
        values = engine.step(micro_batches(case, step, world), lr)
        losses.append(float(world.sum(values["loss"].clone()) / world.size))
        norms.append(float(values["grad_norm"]))
    result = {"losses": losses, "norms": norms, "progress": engine.progress(), "case": asdict(case)}
    state = engine.state()
    engine.close()
    if world.is_main:
        save_file(state, out / f"{case.name}.safetensors")
        (out / f"{case.name}.json").write_text(json.dumps(result))
    return result


def main(arguments: list[str]) -> None:
    """Arguments: the folder, which holds cases.json and takes the results."""
    folder = Path(arguments[0])
    torch.set_num_threads(1)
    world = distributed.start()
    for values in json.loads((folder / "cases.json").read_text()):
        train(Case(**values), folder, world)
