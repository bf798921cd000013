"""Which epoch counts: evaluation after epochs, the best one by a rule, and the final answers on the test part.

`last` is always reported. `oracle` is the best epoch on the test part itself, and named so. `validation` is the best epoch on
groups that were cut out of the training part. The earliest epoch wins a tie. `inner`, for trials of a search, is the last
epoch on that validation part, without a look at the test part.
With averaged weights (optim.ema_decay) it is these that are evaluated and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hicmae.config import FinetuneConfig
from hicmae.errors import DivergedError
from hicmae.model.classify import HiCMAEClassifier
from hicmae.record import RunRecord
from hicmae.train import checkpoint
from hicmae.train.distributed import World
from hicmae.train.engine import Engine
from hicmae.train.evaluate import Evaluation, evaluate

if TYPE_CHECKING:
    import pyarrow as pa

    from hicmae.data.loader import Batches

Best = dict[str, dict[str, Any]]  # selection -> {"epoch": finished epochs, "value": headline, "metrics": {...}}


class Selector:
    """Evaluates a fine-tuning while it trains and afterwards. All processes call; the main one keeps what is found.

    What a selection needs of its best epoch lies in checkpoints/selected/<selection>-<epoch>, so that a resumed run,
    whose checkpoint names the epoch, finds it.
    """

    def __init__(
        self, config: FinetuneConfig, record: RunRecord, world: World, model: HiCMAEClassifier, parts: dict[str, Batches]
    ) -> None:
        self.config, self.record, self.world, self.parts = config, record, world, parts
        self.model = model.to(world.device)  # a copy that only evaluates: the engine's own may be cut up over processes
        self.between: Callable[[], None] = lambda: None  # called between batches; may raise to break off
        self._folder = record.path / "checkpoints" / "selected"
        self._part, self._name = ("validation", "inner") if config.evaluation.selection == "inner" else ("test", "last")
        self._test: tuple[int, Evaluation | None] = (0, None)  # the last evaluation of that part, and after which epoch

    def after_epoch(self, engine: Engine, epoch: int, step: int, best: Best) -> None:
        """Evaluate what the configuration asks for after `epoch` epochs; `best` is updated on the main process."""
        rule = self.config.evaluation
        if not rule.oracle and rule.selection == "last":
            return
        weights = self._load_weights(engine)
        if rule.selection == "validation":
            found = self._evaluate("validation", epoch, step)
            if found and _improves(best, "validation", epoch, found):
                checkpoint.save_weights(self._path("validation", epoch), weights)
        if rule.selection == "inner":
            self._evaluate("validation", epoch, step)
        if rule.oracle:
            found = self._evaluate("test", epoch, step)
            if found and _improves(best, "oracle", epoch, found):
                _write_table(found.table("oracle"), self._path("oracle", epoch))

    def forget_others(self, best: Best) -> None:
        """Remove what belongs to epochs that are no longer the best; to be called once a checkpoint says so."""
        kept = {self._path(selection, entry["epoch"]) for selection, entry in best.items()}
        for path in set(self._folder.glob("*-????.*")) - kept:
            path.unlink()

    def final(self, engine: Engine, epoch: int, step: int, best: Best) -> tuple[dict[str, dict[str, float]], list[pa.Table]]:
        """Metrics and predictions of every selection on the test part (`inner`: on validation); empty but on the main process."""
        if self._test[0] != epoch:
            self._load_weights(engine)
            self._evaluate(self._part, epoch, step)
        answers = {self._name: self._test[1]}
        if self.config.evaluation.selection == "validation":
            answers["validation"] = self._of_validation(best)
        found = {name: (answer.metrics(), answer.table(name)) for name, answer in answers.items() if answer}
        if "oracle" in best:
            found["oracle"] = best["oracle"]["metrics"], _read_table(self._path("oracle", best["oracle"]["epoch"]))
        for name, (values, _) in found.items():
            values["epoch"] = float(best[name]["epoch"] if name in best else epoch)
        return {name: values for name, (values, _) in found.items()}, [table for _, table in found.values()]

    def keep_selected_weights(self, best: Best) -> None:
        """Copy the weights of the epoch chosen by validation to checkpoints/validation.safetensors.

        The file that a checkpoint names stays until the result is written: until then the run may be executed again.
        """
        if "validation" in best:
            chosen = self._path("validation", best["validation"]["epoch"])
            checkpoint.copy_weights(chosen, self._folder.parent / "validation.safetensors")

    def _of_validation(self, best: Best) -> Evaluation | None:
        from safetensors.torch import load_file

        epoch = self.world.share(best["validation"]["epoch"] if self.world.is_main else None)
        self.model.load_state_dict(load_file(self._path("validation", epoch), device=str(self.world.device)))
        return evaluate(self.model, self.parts["test"], self.config, self.world, self.between)

    def _load_weights(self, engine: Engine) -> dict[str, Any]:
        weights = engine.weights(ema=self.config.optim.ema_decay is not None)
        self.model.load_state_dict(weights)
        return weights

    def _evaluate(self, part: str, epoch: int, step: int) -> Evaluation | None:
        found = evaluate(self.model, self.parts[part], self.config, self.world, self.between)
        if not self.world.share(found is None or found.is_finite()):
            what = f"scores of the {part} part are not finite after step {step}"
            raise DivergedError(f"{what}; lower optim.base_lr, clip gradients or look at the data", step)
        if part == self._part:
            self._test = epoch, found
        if found:
            values = found.metrics()
            self.record.append_metrics(part, step, epoch, values)
            shown = "  ".join(f"{name} {values[name]:.2f}" for name in found.corpus.metrics)
            print(f"epoch {epoch}/{self.config.optim.epochs}  {part}: {shown}", flush=True)
        return found

    def _path(self, selection: str, epoch: int) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        suffix = "safetensors" if selection == "validation" else "parquet"
        return self._folder / f"{selection}-{epoch:04d}.{suffix}"


def _improves(best: Best, selection: str, epoch: int, found: Evaluation) -> bool:
    value = found.headline()
    if selection in best and value <= best[selection]["value"]:
        return False
    best[selection] = {"epoch": epoch, "value": value, "metrics": found.metrics()}
    return True


def _write_table(table: pa.Table, path: Path) -> None:
    from hicmae.train.evaluate import write_predictions

    write_predictions(path, [table])


def _read_table(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(path)
