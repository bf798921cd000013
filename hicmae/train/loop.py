"""The one training loop: pre-training, classification and regression differ in objective, data and selection alone.

What happens after a step (logging, checkpoints, stopping) happens where the processes agree: every `_settle_every` steps,
and at the end of an epoch, one small exchange adds up losses, the wish to stop and the wish for a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from hicmae.config import PretrainConfig, RunConfig
from hicmae.errors import DivergedError
from hicmae.record import RunRecord
from hicmae.train import checkpoint, gpu
from hicmae.train.distributed import World
from hicmae.train.engine import Engine
from hicmae.train.interrupt import Preempted, StopRequest
from hicmae.train.objective import Batch, check_contrast, drop_keep, mixing
from hicmae.train.optim import learning_rate
from hicmae.train.selection import Best, Selector

if TYPE_CHECKING:
    from hicmae.data.loader import Batches

CHECKPOINT_EVERY_S = 600.0
_SETTLE_ON_GPU = 20  # steps between looks at the losses: a look makes the GPU wait
_LOG_EVERY = 200  # steps between logged points inside an epoch; a multiple of the above


@dataclass
class Progress:
    """Where a run is: what a checkpoint holds beside tensors. Everything random follows from the seed and this."""

    epoch: int = 0  # finished epochs
    step_in_epoch: int = 0  # finished steps of the epoch at hand; all of them: it is trained but not yet evaluated
    elapsed_s: float = 0.0  # wall time over all attempts up to their last checkpoint, and processor time
    cpu_s: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # since the last logged point
    counts: dict[str, int] = field(default_factory=dict)
    first_loss: float | None = None  # of the first and the last logged point
    last_loss: float | None = None
    best: Best = field(default_factory=dict)


class Loop:
    """Trains from `progress` to the end. Every process of the run holds one; the main one writes the record."""

    def __init__(
        self,
        config: RunConfig,
        record: RunRecord,
        world: World,
        engine: Engine,
        train: Batches,
        selector: Selector | None,
        progress: Progress,
        checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    ) -> None:
        self.config, self.record, self.world, self.engine = config, record, world, engine
        self.train, self.selector, self.progress, self.checkpoint_every_s = train, selector, progress, checkpoint_every_s
        check_contrast(config, world.size)
        self._mix = mixing(config, world.size)
        self._drop_rates: list[float] = engine.model.drop_keep_plan(config.optim.drop_path)  # type: ignore[operator]
        self._settle_every = _SETTLE_ON_GPU if world.device.type == "cuda" else 1
        self._pending: list[dict[str, Tensor]] = []
        self._saved_at = self.counted_at = self._logged_at = time.monotonic()
        self._cpu_at = _cpu_s()
        self._stop = StopRequest()

    @property
    def step(self) -> int:
        """Finished optimiser steps."""
        return self.progress.epoch * self.train.steps_per_epoch + self.progress.step_in_epoch

    def run(self) -> None:
        """Train to the end.

        Raises DivergedError for a loss that is not finite, Preempted after a signal (the state is saved then),
        HicmaeError when a checkpoint cannot be written.
        """
        if self.selector:
            self.selector.between = self._break_off
        with self._stop:
            while self.progress.epoch < self.config.optim.epochs:
                self._train_epoch()
                self._end_epoch()

    def finish(self) -> tuple[dict[str, dict[str, float]], list[Any]]:
        """After `run`: write the final weights; metrics and predictions of every selection (fine-tuning, main process)."""
        weights = self.engine.weights(ema=self.config.optim.ema_decay is not None)
        if self.world.is_main:
            checkpoint.save_weights(self.record.path / "checkpoints" / "final.safetensors", weights, run=self.record.id)
        if not self.selector:
            return {}, []
        with self._stop:
            return self.selector.final(self.engine, self.progress.epoch, self.step, self.progress.best)

    def count_time(self) -> None:
        """Add the time since the last call to the progress."""
        now, cpu = time.monotonic(), _cpu_s()
        self.progress.elapsed_s += now - self.counted_at
        self.progress.cpu_s += cpu - self._cpu_at
        self.counted_at, self._cpu_at = now, cpu

    def _train_epoch(self) -> None:
        progress, steps = self.progress, self.train.steps_per_epoch
        batches = self.train.epoch(progress.epoch, progress.step_in_epoch)
        while progress.step_in_epoch < steps:
            rate = learning_rate(self.step, steps, self.config.optim)
            values = self.engine.step(self._micro_batches(batches), rate)
            self._pending.append({**values, "lr": torch.tensor(rate)})
            progress.step_in_epoch += 1
            if progress.step_in_epoch % self._settle_every == 0 or progress.step_in_epoch == steps:
                self._settle()

    def _end_epoch(self) -> None:
        """Evaluate, keep weights where asked for, and go to the next epoch."""
        progress, finished = self.progress, self.progress.epoch + 1
        if isinstance(self.config, PretrainConfig) and finished in self.config.keep_epochs:
            weights = self.engine.weights(ema=self.config.optim.ema_decay is not None)
            if self.world.is_main:
                path = self.record.path / "checkpoints" / f"epoch-{finished:04d}.safetensors"
                checkpoint.save_weights(path, weights, run=self.record.id)
        if self.selector:
            self.selector.after_epoch(self.engine, finished, self.step, progress.best)
        progress.epoch, progress.step_in_epoch = finished, 0
        self._logged_at = time.monotonic()  # evaluating is not training slowly

    def _micro_batches(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Tensor | None]]:
        """The micro-batches of a step on this process's device, mixed, with their stochastic depth."""
        device, optim, step = self.world.device, self.config.optim, self.step
        for _ in range(optim.accumulation_steps):
            batch = next(batches)
            keep = drop_keep(self._drop_rates, optim.batch_size, batch["position"], self.config.seed, step)
            on_device = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
            if self._mix:
                self._mix(on_device, step)
            yield on_device, keep if keep is None else keep.to(device)

    def _settle(self) -> None:
        """Agree with the other processes on what the last steps gave, then log, save and stop as due."""
        names = list(self._pending[0])
        rows = torch.stack([torch.stack([values[name].to(self.world.device) for name in names]) for values in self._pending])
        due = self.world.is_main and time.monotonic() - self._saved_at >= self.checkpoint_every_s
        wishes = torch.tensor([[float(bool(self._stop.name)), float(due)]], device=self.world.device)
        *steps, wished = _rows(self.world.sum(torch.cat([rows, _padded(wishes, rows)])))
        self._pending = []
        for offset, row in enumerate(steps):
            self._add(self.step - len(steps) + offset, {name: v / self.world.size for name, v in zip(names, row, strict=True)})
        is_end = self.progress.step_in_epoch == self.train.steps_per_epoch
        if is_end or self.step % _LOG_EVERY == 0:
            self._log()
        if wished[0] or wished[1]:
            self._save()
        if wished[0]:
            raise Preempted(f"stopped after step {self.step}; its state is saved, execute the run again to go on")

    def _add(self, step: int, values: dict[str, float]) -> None:
        """Take a step's values into the running sums. Raises DivergedError when one of them is not finite."""
        for name, value in values.items():
            # In fp16 an infinite gradient is how the loss scale finds its limit; the step was left out.
            if name == "grad_norm" and self.engine.scale and not math.isfinite(value):
                continue
            if not math.isfinite(value):
                remedy = "lower optim.base_lr, clip gradients or look at the data"
                raise DivergedError(f"{name} is {value} at step {step}; {remedy}", step)
            self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
            self.progress.counts[name] = self.progress.counts.get(name, 0) + 1

    def _log(self) -> None:
        progress = self.progress
        means = {name: total / progress.counts[name] for name, total in progress.sums.items()}
        means["lr"] = learning_rate(self.step - 1, self.train.steps_per_epoch, self.config.optim)
        steps, progress.sums, progress.counts = progress.counts["loss"], {}, {}
        progress.last_loss = means["loss"]
        progress.first_loss = means["loss"] if progress.first_loss is None else progress.first_loss
        if not self.world.is_main:
            return
        epoch = self.step / self.train.steps_per_epoch
        system = self._system(steps)
        self.record.append_metrics("train", self.step, epoch, means)
        self.record.append_metrics("system", self.step, epoch, system)
        left_s = (self.config.optim.epochs - epoch) * self.train.steps_per_epoch * system["step_s"]
        print(
            f"epoch {epoch:.4g}/{self.config.optim.epochs}  step {self.step}  loss {means['loss']:.4f}  lr {means['lr']:.3g}  "
            f"{system['samples_per_s']:.3g} samples/s  data wait {system['data_wait_share']:.0%}  left {_clock(left_s)}",
            flush=True,
        )

    def _system(self, steps: int) -> dict[str, float]:
        """What the machine did since the last point; of this process, but for samples_per_s."""
        now = time.monotonic()
        passed_s, self._logged_at = max(now - self._logged_at, 1e-9), now
        waited_s, self.train.waiting_s = self.train.waiting_s, 0.0
        values = {
            "samples_per_s": steps * self.config.optim.batch_size / passed_s,
            "step_s": passed_s / steps,
            "data_wait_share": min(waited_s / passed_s, 1.0),
            "rss_bytes": float(psutil.Process().memory_info().rss),
        }
        return values | gpu.load(self.world.device)

    def _save(self) -> None:
        """Write a checkpoint of this moment; all processes call, because tensors may be cut up over them."""
        state = self.engine.state()
        self.count_time()
        if self.world.is_main:
            numbers = {"progress": asdict(self.progress), "engine": self.engine.progress(), "seed": self.config.seed}
            checkpoint.save(self.record.path / "checkpoints", self.step, state, numbers)
            self.record.append_event("checkpoint", step=self.step)
            if self.selector:
                self.selector.forget_others(self.progress.best)
        self._saved_at = time.monotonic()

    def _break_off(self) -> None:
        """Between batches of an evaluation: stop now, where no other process would be left waiting."""
        if self._stop.name and self.world.size == 1:
            self._save()
            raise Preempted(f"stopped in evaluation after step {self.step}; its state is saved, execute the run again to go on")


def _padded(row: Tensor, like: Tensor) -> Tensor:
    return torch.nn.functional.pad(row, (0, like.shape[1] - row.shape[1]))


def _rows(values: Tensor) -> list[list[float]]:
    return [[float(value) for value in row] for row in values.tolist()]


def _cpu_s() -> float:
    """Processor time of this process and of the workers that it has seen end."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
