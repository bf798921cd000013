"""Execute one run: the same call in tests, locally and under SLURM.

    python -m hicmae.run RUN_DIR [--workers N] [--threads N] [--on-error fail|skip]

reads RUN_DIR/config.json, goes on from the last good checkpoint if there is one, and writes everything else of the record.
A fine-tuning that starts from a pre-training finds it beside itself, at RUN_DIR/../<its run id>. Under torchrun or srun all
processes call this; the first writes.

Exit codes: 0 done; 1 failed; 2 bad usage, or another process executes this run; 75 stopped by a signal with its state saved
(executing it again goes on); 130 stopped by Ctrl-C before there was anything to save.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import errno
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from filelock import Timeout

from hicmae.config import FinetuneConfig, PretrainConfig, RunConfig
from hicmae.errors import DivergedError, HicmaeError, UsageError
from hicmae.record import RunRecord, write_json

if TYPE_CHECKING:
    from hicmae.data.loader import Batches
    from hicmae.train.checkpoint import Checkpoint
    from hicmae.train.distributed import World
    from hicmae.train.loop import Loop

T = TypeVar("T", int, float, str)
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class Execution:
    """How a run is executed on this machine; threads change a result in its last bits, and skipped clips are in its record."""

    workers: int | None = None  # processes that read data, per process of the run
    threads: int | None = None  # of torch, per process
    checkpoint_every_s: float | None = None
    on_error: str | None = None  # "fail" or "skip" clips that cannot be used; skipped ones are named in the result

    def resolved(self, processes: int) -> Execution:
        """Unset fields from $HICMAE_WORKERS, _THREADS, _CHECKPOINT_S and _ON_ERROR, else from the machine."""
        import torch

        from hicmae.provenance import usable_cores
        from hicmae.train.loop import CHECKPOINT_EVERY_S

        cores = max(1, usable_cores() // (processes if "RANK" in os.environ else 1))
        workers, threads = (min(8, cores - 1), 1) if torch.cuda.is_available() else (0, cores)
        return replace(
            self,
            workers=_setting(self.workers, "HICMAE_WORKERS", workers),
            threads=_setting(self.threads, "HICMAE_THREADS", max(1, int(os.environ.get("OMP_NUM_THREADS", threads))), 1),
            checkpoint_every_s=_setting(self.checkpoint_every_s, "HICMAE_CHECKPOINT_S", CHECKPOINT_EVERY_S),
            on_error=_setting(self.on_error, "HICMAE_ON_ERROR", "fail"),
        )


def execute(
    run_dir: Path | str,
    *,
    workers: int | None = None,
    threads: int | None = None,
    checkpoint_every_s: float | None = None,
    on_error: str | None = None,
) -> dict[str, Any]:
    """Bring the run at `run_dir` to its end and return its result; a run that is done is left as it is.

    Raises UsageError when another process executes it or the machine lacks what it needs, Preempted after a signal,
    DivergedError for a loss that is not finite, HicmaeError for other failures. Failures are recorded with a line of reason.
    """
    record = RunRecord(Path(run_dir).absolute())
    config = record.config()
    if result := record.result():
        _remove_leftovers(record)
        return result
    execution = Execution(workers, threads, checkpoint_every_s, on_error)
    with ExitStack() as stack:
        if _rank() == 0:
            _take_lock(record, stack)
        attempt = Attempt(record, config, execution)
        try:
            return attempt.run()
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _UNWRITABLE and not error.filename:
                error.filename = str(record.path)  # a write to a full disk does not say where
            attempt.record_end(error)
            raise


class Attempt:
    """One execution of a run, from its start to its end or failure."""

    def __init__(self, record: RunRecord, config: RunConfig, execution: Execution) -> None:
        self.record, self.config, self.execution = record, config, execution
        self.loop: Loop | None = None
        self.began, self.began_at = time.monotonic(), time.time()

    def run(self) -> dict[str, Any]:
        """Check what is needed, train, evaluate, write the result."""
        from hicmae import seeding
        from hicmae.train import distributed

        seeding.use_deterministic_algorithms(self.config.engine.deterministic)
        self.world = distributed.start()
        self._set_up()
        fingerprint = self._check_data()
        saved = _latest(self.record, self.world)
        self._check_start(saved)
        self._announce(fingerprint, saved.step if saved else 0)
        parts = self._batches()
        self.loop = self._loop(saved, parts)
        self.loop.run()
        metrics, tables = self.loop.finish()
        self.loop.count_time()
        result = self._result(parts, metrics) if self.world.is_main else {}
        if self.world.is_main:
            self._write(result, tables, parts)
        self.loop.engine.close()
        return dict(self.world.share(result))

    def record_end(self, error: Exception) -> None:
        """Write why the attempt ended; whatever process of the run it was that ended."""
        from hicmae.train.interrupt import Preempted

        # On these all processes agree, so one of them writes. Anything else may have happened to one alone, and has then broken
        # off the others' exchanges: what is written first is the cause.
        if (isinstance(error, (Preempted, DivergedError, UsageError)) and _rank() != 0) or self._has_failed():
            return
        step = error.step if isinstance(error, DivergedError) else self.loop.step if self.loop else None
        known = {} if step is None else {"step": step}
        try:
            if isinstance(error, Preempted):
                self.record.append_event("preempted", **known)
            else:
                self.record.append_event("failed", reason=_reason(error), error=type(error).__name__, rank=_rank(), **known)
        except OSError as unwritable:  # a full disk; the exit code and the lines printed still say it
            print(f"{self.record.path}/events.jsonl: cannot be written ({unwritable.strerror})", file=sys.stderr)

    def _has_failed(self) -> bool:
        return any(event.get("event") == "failed" and event["time"] >= self.began_at for event in self.record.events())

    def _set_up(self) -> None:
        import torch

        from hicmae.train.memory import keep_freed_memory

        self.execution = self.execution.resolved(self.world.size)
        torch.set_num_threads(self.execution.threads or 1)
        if self.world.device.type == "cpu":
            keep_freed_memory()

    def _check_data(self) -> str:
        """The fingerprint of the corpus here. Raises UsageError when it is not the one that the run was planned with."""
        from hicmae.data import manifest

        name, wanted = self.config.data.corpus, self.config.data.fingerprint
        found = self.world.share(manifest.fingerprint(name) if self.world.is_main else "")
        if wanted and found != wanted:
            raise UsageError(
                f"{name}: the data here (fingerprint {found[:12]}) are not those that the run was planned with ({wanted[:12]}); "
                f"restore them (see `hicmae data check {name}`) or launch the study again for the data as they are"
            )
        return str(found)

    def _check_start(self, saved: Checkpoint | None) -> None:
        """Raises ConfigError when fine-tuning starts from weights that lack its modality, or its head does not fit the corpus."""
        from hicmae.data.corpora import check_head
        from hicmae.train.initial import check_modality

        if isinstance(self.config, FinetuneConfig):
            check_head(self.config)
            if not saved:
                check_modality(self.config, self.record.path.parent)

    def _announce(self, fingerprint: str, step: int) -> None:
        """Write snapshot.json (of the first attempt) and the event `started`."""
        from hicmae import provenance

        if not self.world.is_main:
            return
        snapshot = provenance.snapshot(self.config, fingerprint, self.world.size)
        if not (self.record.path / "snapshot.json").exists():
            write_json(self.record.path / "snapshot.json", snapshot)
        attempt = sum(event.get("event") == "started" for event in self.record.events()) + 1
        self.record.append_event(
            "started",
            host=snapshot["hardware"]["host"],
            pid=os.getpid(),
            attempt=attempt,
            step=step,
            total_steps=_total_steps(self.config),
            world_size=self.world.size,
            tree=snapshot["code"]["tree"],
            on_error=self.execution.on_error,
        )
        where = f"going on from step {step}" if step else "from the beginning"
        print(f"run {self.record.id}  {self.config.stage} on {self.config.data.corpus}  attempt {attempt}, {where}", flush=True)

    def _batches(self) -> dict[str, Batches]:
        """The parts of the corpus; every clip has been looked at when this returns, before the first step."""
        from hicmae.data.loader import finetune_batches, pretrain_batches

        options: dict[str, Any] = {
            "rank": self.world.rank,
            "world_size": self.world.size,
            "workers": self.execution.workers,
            "on_error": self.execution.on_error,
            "device": self.world.device,
        }
        if isinstance(self.config, PretrainConfig):
            return {"train": pretrain_batches(self.config, **options)}
        judged_on = {"last": ["test"], "validation": ["test", "validation"], "inner": ["validation"]}
        wanted = ["train", *judged_on[self.config.evaluation.selection]]
        return {part: finetune_batches(self.config, part, **options) for part in wanted}

    def _loop(self, saved: Checkpoint | None, parts: dict[str, Batches]) -> Loop:
        from hicmae.train import objective, optim
        from hicmae.train.engine import Engine
        from hicmae.train.initial import start_from
        from hicmae.train.loop import Loop, Progress
        from hicmae.train.selection import Selector

        config, selector = self.config, None
        model: Any = objective.build_model(config)
        if isinstance(config, FinetuneConfig):
            if not saved:
                start_from(model, config, self.record.path.parent)
            selector = Selector(config, self.record, self.world, copy.deepcopy(model), parts)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        engine = Engine(
            objective.build_objective(config, model),
            model,
            optim.parameter_groups(model.named_parameters(), config.optim, config.encoder),
            config.optim,
            config.engine,
            self.world,
            saved.tensors if saved else None,
            saved.numbers["engine"] if saved else None,
        )
        progress = Progress(**saved.numbers["progress"]) if saved else Progress()
        every_s = float(self.execution.checkpoint_every_s or 0)
        loop = Loop(config, self.record, self.world, engine, parts["train"], selector, progress, every_s)
        loop.counted_at = self.began
        return loop

    def _result(self, parts: dict[str, Batches], metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
        from hicmae.data import corpora

        assert self.loop is not None
        config, progress = self.config, self.loop.progress
        corpus = corpora.get(config.data.corpus)
        hours = progress.elapsed_s / 3600 * self.world.size
        snapshot = self.record.snapshot()
        judged = parts.get("test") or parts.get("validation")
        skipped = {problem.sample_id: str(problem) for part in parts.values() for problem in part.skipped}
        return {
            "run_id": self.record.id,
            "stage": config.stage,
            "status": "done",
            "seed": config.seed,
            "fold": config.data.fold,
            "corpus": config.data.corpus,
            "selection": config.evaluation.selection if isinstance(config, FinetuneConfig) else None,
            "metrics": metrics,
            "headline": corpus.metrics[0] if metrics else None,
            "epochs": config.optim.epochs,
            "steps": self.loop.step,
            "wall_s": progress.elapsed_s,
            "gpu_hours": hours if self.world.device.type == "cuda" else 0.0,
            "cpu_hours": progress.cpu_s / 3600 * self.world.size,
            "parameters": self.parameters,
            "n_train": len(parts["train"].samples),
            "n_test": len(judged.samples) if judged else 0,
            "skipped_clips": [skipped[name] for name in sorted(skipped)],
            "train_loss_first": progress.first_loss,
            "train_loss_last": progress.last_loss,
            "processes": self.world.size,
            "device": snapshot["hardware"]["gpus"][0]["name"] if snapshot["hardware"]["gpus"] else snapshot["hardware"]["cpu"],
            "versions": {name: snapshot["environment"]["packages"].get(name) for name in ("hicmae", "torch", "deepspeed")},
        }

    def _write(self, result: dict[str, Any], tables: list[Any], parts: dict[str, Batches]) -> None:
        """The predictions and pictures, then the result, which says that the run is done; then make room."""
        from hicmae.train import checkpoint, evaluate

        assert self.loop is not None
        if tables:
            evaluate.write_predictions(self.record.path / "predictions.parquet", tables)
        if self.loop.selector:
            self.loop.selector.keep_selected_weights(self.loop.progress.best)
        self._draw(parts)
        self.record.finish(result)
        checkpoint.remove_all(self.record.path / "checkpoints")
        print(f"run {self.record.id} is done: {_summary(result)}", flush=True)

    def _draw(self, parts: dict[str, Batches]) -> None:
        """Pictures for MLflow; no run fails for want of them. Trials of a search, which see no test part, draw none."""
        if os.environ.get("HICMAE_PICTURES") == "0" or (self.config.stage == "finetune" and "test" not in parts):
            return
        from hicmae.train import pictures

        try:
            pictures.draw(self.record, parts, self.world.device)
        except (HicmaeError, OSError, RuntimeError, ValueError) as error:
            print(f"run {self.record.id}: drew no pictures: {_reason(error)}", flush=True)


def _remove_leftovers(record: RunRecord) -> None:
    """Make the room that a run had no time to make, killed right after it was done."""
    folder = record.path / "checkpoints"
    if _rank() == 0 and (any(folder.glob("step-*")) or (folder / "selected").exists()):
        from hicmae.train import checkpoint

        checkpoint.remove_all(folder)


def _take_lock(record: RunRecord, stack: ExitStack) -> None:
    """Hold the run until the end of `stack`; the operating system frees it if this process dies."""
    try:
        stack.enter_context(record.lock())
    except Timeout:
        raise UsageError(f"{record.path}: another process executes this run already; see `hicmae status`") from None


def _latest(record: RunRecord, world: World) -> Checkpoint | None:
    """The newest whole checkpoint, the same on every process."""
    from hicmae.train import checkpoint

    saved = checkpoint.latest(record.path / "checkpoints") if world.is_main else None
    path = world.share(saved.path if saved else None)
    return saved if world.is_main or path is None else checkpoint.read(path)


def _total_steps(config: RunConfig) -> int:
    """Optimiser steps of the whole run, before any clip is left out."""
    from hicmae.data import corpora, manifest

    evaluation, repeats = (config.evaluation, config.augment.repeats) if isinstance(config, FinetuneConfig) else (None, 1)
    samples = manifest.split(config.data, corpora.get(config.data.corpus), "train", evaluation, config.seed)
    return config.optim.epochs * (len(samples) // (config.optim.batch_size // repeats))


def _reason(error: Exception) -> str:
    """One line for the record."""
    text = " ".join(str(error).split())
    if isinstance(error, HicmaeError):
        return text
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return f"{error.filename}: {error.strerror}; free space or allow access there, or choose another place"
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of GPU memory; use more optim.accumulation_steps, more processes or activation checkpointing ({text[:200]})"
    if "gloo" in text or type(error).__name__.startswith("Dist"):
        return f"another process of this run ended or was cut off; see its log ({text[:200]})"
    return f"{type(error).__name__}: {text[:500]}"


def _summary(result: dict[str, Any]) -> str:
    last = result["metrics"].get("last", {})
    figures = f"{result['headline']} {last[result['headline']]:.2f}" if last else f"loss {result['train_loss_last']:.4f}"
    return f"{figures}, {result['steps']} steps in {result['wall_s']:.0f} s"


def _rank() -> int:
    """This process's number in the run, known before torch is imported."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def _setting(value: T | None, variable: str, default: T, least: int = 0) -> T:
    """A setting of the call, else of the environment, else of the machine. Raises UsageError below `least`."""
    name, found = f"--{variable[7:].lower()}", default if value is None else value
    if value is None and variable in os.environ:
        try:
            name, found = variable, type(default)(os.environ[variable])
        except ValueError:
            raise UsageError(f"{variable} = {os.environ[variable]!r}: must be a number") from None
    if not isinstance(found, str) and found < least:
        raise UsageError(f"{name} = {found}: must be at least {least}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hicmae.run", description="Execute one run, or go on with it.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--workers", type=int, help="processes that read data (default: by cores with a GPU, else none)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: all cores without a GPU, else 1)")
    parser.add_argument("--on-error", choices=("fail", "skip"), help="what to do about clips that cannot be used (default: fail)")
    options = parser.parse_args(arguments)
    try:
        if not options.run_dir.is_dir():
            raise UsageError(f"{options.run_dir}: is not a run directory; `hicmae status` lists them")
        execute(options.run_dir, workers=options.workers, threads=options.threads, on_error=options.on_error)
    except HicmaeError as error:
        print(f"error: {error}" if error.exit_code != 75 else str(error), file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        print(f"error: {_reason(error)}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        return 130
    return 0


def end_process(code: int) -> NoReturn:
    """End this process with its exit code, after all that was registered for its end."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The threads of gloo may still hold what was exchanged last. When they drop it while the interpreter is taken down, the
        # process aborts: one run in five, all of it done. So the interpreter is left as it is.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end_process(main())
