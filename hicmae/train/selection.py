"""Which epoch counts: evaluation after epochs, the best one by a rule, and the final answers on the test part.

`last` is always reported. `oracle` is the best epoch on the test part itself, and named so. `validation` is the best epoch on
groups that were cut out of the training part. The earliest epoch wins a tie.
With averaged weights (optim.ema_decay) it is these that are evaluated and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hicmae.config import FinetuneConfig
from hicmae.model.classify import HiCMAEClassifier
from hicmae.record import RunRecord
from hicmae.train import checkpoint
from hicmae.train.distributed import World
from hicmae.train.engine import Engine
from hicmae.train.evaluate import Evaluation, evaluate

if TYPE_CHECKING:
    import pyarrow as pa

    from hicmae.data.loader import Batches

Best = dict[str, dict[str, float]]  # selection -> {"epoch": finished epochs, "value": headline}


class Selector:
    """Evaluates a fine-tuning while and after it trains. All processes call; the main process keeps what is found.

    What a selection needs of its best epoch lies in checkpoints/selected/<selection>-<epoch>, so that a resumed run,
    whose checkpoint names the epoch, finds it.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        record: RunRecord,
        world: World,
        model: HiCMAEClassifier,
        parts: dict[str, Batches],
        between: Callable[[], None],
    ) -> None:
        self.config, self.record, self.world, self.parts, self.between = config, record, world, parts, between
        self.model = model.to(world.device)  # a copy that only evaluates: the engine's own may be cut up over processes
        self.folder = record.path / "checkpoints" / "selected"
        self._seen: tuple[int, Evaluation | None] = (0, None)  # the test part as last evaluated, after how many epochs

    def after_epoch(self, engine: Engine, epoch: int, step: int, best: Best) -> None:
        """Evaluate what the configuration asks for after `epoch` epochs, and update `best`."""
        evaluation = self.config.evaluation
        if not evaluation.oracle and evaluation.selection != "validation":
            return
        weights = self._take_weights(engine)
        if evaluation.selection == "validation" and self._is_best("validation", "validation", epoch, step, best):
            self._keep(epoch, lambda path: checkpoint.save_weights(path, weights, epoch=str(epoch)))
        if evaluation.oracle and self._is_best("oracle", "test", epoch, step, best):
            self._keep_oracle(epoch)

    def forget_others(self, best: Best) -> None:
        """Remove what belongs to epochs that are no longer the best; to be called once a checkpoint says so."""
        kept = {f"{selection}-{int(entry['epoch']):04d}" for selection, entry in best.items()}
        for path in self.folder.glob("*-????.*"):
            if path.stem not in kept:
                path.unlink()

    def final(self, engine: Engine, epochs: int, step: int, best: Best) -> tuple[dict[str, dict[str, float]], list[pa.Table]]:
        """Metrics and predictions of every selection on the test part; empty but on the main process."""
        found: dict[str, dict[str, float]] = {}
        tables: list[Any] = []
        for selection, evaluation in self._answers(engine, epochs, step, best).items():
            if isinstance(evaluation, Evaluation):
                found[selection] = evaluation.metrics()
                tables.append(evaluation.table(selection))
        if self.world.is_main and "oracle" in best:
            import pyarrow.parquet as pq

            table = pq.read_table(self._path("oracle", best, "parquet"))
            found["oracle"] = {**self._oracle_metrics(int(best["oracle"]["epoch"])), "epoch": best["oracle"]["epoch"]}
            tables.append(table)
        return found, tables
