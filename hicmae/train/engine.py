"""The only import of deepspeed: one object that takes optimiser steps, the same for every ZeRO stage and precision.

Parameters, gradients and AdamW's moments are float32 in every stage. With bf16 and fp16 the objective computes under
torch.autocast; fp16 scales the loss. What differs between the stages stays in this file: the state that goes out
(`Engine.state`) and comes in (`state=`) is whole, float32 and under the model's own names, so a run can go on
with another stage and another number of processes.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hicmae.config import EngineConfig, OptimConfig
from hicmae.errors import DivergedError
from hicmae.train.distributed import World
from hicmae.train.optim import Group, adamw, local_batch

MOMENTS = ("exp_avg", "exp_avg_sq")
_BUCKET_ELEMENTS = 25_000_000  # of the buffers that ZeRO reduces gradients in: 100 MB


def _deepspeed() -> Any:
    """Import deepspeed so that it starts in a second, says nothing and compiles nothing."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    # Its autotuner, which is not used here, imports mlflow if it can: four seconds and 150 MB in every run.
    hidden = {name: sys.modules.get(name) for name in ("mlflow",) if sys.modules.get(name) is None}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import deepspeed
    finally:
        for name in hidden:
            del sys.modules[name]
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # No operator counts as buildable: on a CPU it would compile its shared-memory collectives at every first start.
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    return deepspeed


@dataclass
class LossScale:
    """fp16's factor on the loss: halved when a gradient overflows, doubled after `patience` steps without."""

    value: float = 2.0**16
    good_steps: int = 0
    patience: int = 2000

    def update(self, overflow: bool) -> None:
        """Raises DivergedError when gradients overflow even without scaling."""
        if overflow and self.value <= 1:
            raise DivergedError("gradients overflow in fp16 at a loss scale of 1; use bf16 or fp32, or a smaller base_lr")
        self.good_steps = 0 if overflow else self.good_steps + 1
        if overflow:
            self.value /= 2
        elif self.good_steps % self.patience == 0:
            self.value *= 2


class Engine:
    """Takes optimiser steps on `objective`, a module whose forward(batch, drop_keep) gives {"loss": ..., parts}.

    `model` is the part of the objective whose parameters are learnt and whose names the state carries.
    Raises UsageError when the batch does not divide over processes and accumulation steps.
    """

    def __init__(
        self,
        objective: nn.Module,
        model: nn.Module,
        groups: Iterable[Group],
        optim: OptimConfig,
        engine: EngineConfig,
        world: World,
        state: Mapping[str, Tensor] | None = None,
        progress: Mapping[str, float] | None = None,
    ) -> None:
        share = local_batch(optim, world.size)
        self.model, self.optim, self.world, self.stage = model, optim, world, engine.zero_stage
        if state is not None:
            load_weights(model, state)
        objective.to(world.device)
        deepspeed = _deepspeed()
        deepspeed.init_distributed(dist_init_required=None, verbose=False)
        self._ds = deepspeed.initialize(
            model=objective, optimizer=adamw(groups, optim), config=_settings(optim, engine, share, world.size)
        )[0]
        self._names = dict(model.named_parameters())
        # Both alone: the reduction over one process would copy every gradient twice to change nothing.
        self._ds.enable_backward_allreduce = self.stage > 0 or world.size > 1
        self.scale = LossScale() if engine.precision == "fp16" else None
        self._restore(state or {}, progress or {})

    def step(self, micro_batches: Iterable[tuple[Any, Tensor | None]], lr: float) -> dict[str, Tensor]:
        """One optimiser step over all micro-batches -> this process's mean losses and the global `grad_norm`, as tensors.

        With fp16, and in stages 1-3, a step whose gradient is not finite changes no weight. Elsewhere it spoils them: the caller
        looks at the losses and at `grad_norm` before it saves anything. In fp16 an infinite norm alone is no failure.
        """
        for group in self._ds.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if self.scale and self.stage:
            self._ds.optimizer.override_loss_scale(self.scale.value)
        sums: dict[str, Tensor] = {}
        for i, (batch, drop_keep) in enumerate(micro_batches, start=1):
            losses = self._ds(batch, drop_keep)
            self._ds.backward(losses["loss"] * self.scale.value if self.scale and not self.stage else losses["loss"])
            if i == self.optim.accumulation_steps and not self.stage:
                self._finish_plain_gradients()
            self._ds.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / self.optim.accumulation_steps
        overflow = self._take_notice()
        return {**sums, "grad_norm": torch.full((), float("inf")) if overflow else self._grad_norm}

    @torch.no_grad()
    def weights(self, ema: bool = False) -> dict[str, Tensor]:
        """The model's whole state dict in float32 on every process (averaged weights with `ema`); all processes must call."""
        weights = dict(self.model.state_dict()) if self.stage < 3 else dict(self.model.named_buffers())
        weights = {name: value.detach() for name, value in weights.items() if name in self._persistent}
        if ema or self.stage == 3:
            weights.update({name: self._whole(p, "ema" if ema else None) for name, p in self._names.items()})
        return weights

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """Weights, moments and averaged weights, whole, on the CPU of the main process; all processes must call.

        Keys: `model/<name>`, `exp_avg/<name>`, `exp_avg_sq/<name>`, `ema/<name>`.
        """
        state = {f"model/{name}": value for name, value in self.weights().items()}
        for key in self._kept:
            for name, parameter in self._names.items():
                state[f"{key}/{name}"] = self._whole(parameter, key)
        # A copy: training may go on while the state is being written.
        return {name: value.detach().cpu().clone() for name, value in state.items()} if self.world.is_main else {}

    def progress(self) -> dict[str, float]:
        """The numbers that go with `state`: AdamW's step count and fp16's loss scale."""
        scale = {"loss_scale": self.scale.value, "good_steps": self.scale.good_steps} if self.scale else {}
        return {"adam_step": float(self._state_of(self._flats[0])["step"]), **scale}

    def close(self) -> None:
        """Remove what deepspeed has hooked into the model."""
        self._ds.destroy()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self._ds.optimizer.optimizer if self.stage else self._ds.optimizer

    @property
    def _flats(self) -> list[Tensor]:
        """The float32 tensors that AdamW updates: parameters, or this process's flat parts of groups of them."""
        if self.stage == 3:
            return list(self._ds.optimizer.fp32_partitioned_groups_flat)
        if self.stage:
            return list(self._ds.optimizer.single_partition_of_fp32_groups)
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _state_of(self, flat: Tensor) -> dict[str, Tensor]:
        return self._optimizer.state[flat]

    @torch.no_grad()
    def _restore(self, state: Mapping[str, Tensor], progress: Mapping[str, float]) -> None:
        """Make AdamW's state before its first step, so that there is something to fill and to average into."""
        self._persistent = set(self.model.state_dict())
        averages = self.optim.ema_decay is not None
        self._kept = (*MOMENTS, "ema") if averages else MOMENTS
        self._grad_norm = torch.zeros(())
        for flat in self._flats:
            step = torch.full((), progress.get("adam_step", 0.0), device=flat.device)
            self._state_of(flat).update(step=step, **{key: torch.zeros_like(flat) for key in MOMENTS})
            if averages:
                self._state_of(flat)["ema"] = flat.detach().clone()
        if self.stage in (1, 2):
            self._ds.optimizer._lazy_init_hp_params_optimizer_state()  # links the parameters to the parts of the flat state
        for key in self._kept if state else ():
            for name, parameter in self._names.items():
                self._fill(parameter, key, state[f"{key}/{name}"])
        if self.scale and "loss_scale" in progress:
            self.scale = LossScale(progress["loss_scale"], int(progress["good_steps"]))

    def _whole(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        """A parameter, or its optimiser state of that key, gathered from all processes."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.stage == 0:
            return parameter.detach() if key is None else self._state_of(parameter)[key]
        if key is None:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, key)

    def _fill(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """The reverse of `_whole` for optimiser state."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(self.world.device)
        if self.stage == 0:
            self._state_of(parameter)[key].copy_(value)
        elif self.stage < 3:
            safe_set_full_optimizer_state(parameter, value, key)
        else:
            # Its function for whole values fails where a tensor does not divide over the processes; parts are padded with zeros.
            share = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = torch.nn.functional.pad(value.flatten(), (0, share * self.world.size - value.numel()))
            safe_set_local_optimizer_state(parameter, padded[self.world.rank * share :][:share], key)

    def _finish_plain_gradients(self) -> None:
        """What deepspeed does in stages 1-3 only: take back the loss scale, find overflow, clip, know the norm."""
        for parameter in self._names.values():
            if parameter.grad is None:  # unused; deepspeed decays its weights in the other stages, so here too
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._names.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.scale:
            torch._foreach_div_(gradients, self.scale.value)
            norm = norm / self.scale.value
            if not torch.isfinite(norm):
                self._ds.zero_grad()  # AdamW passes over parameters without a gradient
        if self.optim.clip_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self._names.values(), self.optim.clip_grad_norm, norm)
        self._grad_norm = norm

    def _take_notice(self) -> bool:
        """After a step: update the loss scale and the averaged weights; whether the step was left out for overflow."""
        overflow = False
        if self.stage:
            overflow = bool(self._ds.optimizer.overflow)
            self._grad_norm = torch.as_tensor(self._ds.get_global_grad_norm(), dtype=torch.float32)
        elif self.scale:
            overflow = not bool(torch.isfinite(self._grad_norm))
        if self.scale:
            self.scale.update(overflow)
        if self.optim.ema_decay is not None and not overflow:
            averages = [self._state_of(flat)["ema"] for flat in self._flats]
            torch._foreach_lerp_(averages, [flat.detach() for flat in self._flats], 1 - self.optim.ema_decay)
        return overflow


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the `model/` part of an engine's state into a model."""
    model.load_state_dict({name.removeprefix("model/"): value for name, value in state.items() if name.startswith("model/")})


def _settings(optim: OptimConfig, engine: EngineConfig, share: int, processes: int) -> dict[str, Any]:
    """deepspeed's configuration. Precision is not its business here, and neither is clipping in stage 0."""
    return {
        "train_batch_size": optim.batch_size,
        "train_micro_batch_size_per_gpu": share,
        "gradient_accumulation_steps": optim.accumulation_steps,
        "gradient_clipping": (optim.clip_grad_norm or 0.0) if engine.zero_stage else 0.0,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            # Stage 3 would replace torch's linear in the whole process; with torch's own, losses equal those of other stages.
            "memory_efficient_linear": False,
            # Stage 3 would add up gradients while others are still being computed, in an order that time decides.
            **({"overlap_comm": False} if engine.deterministic else {}),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},
    }
