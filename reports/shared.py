"""Pre-trainings that rows of a table start from: their hours are in no row, because several rows share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.cells import Cell
from reports.query import Study


@dataclass(frozen=True)
class Shared:
    """The finished pre-trainings among `wanted`, and what they took together."""

    runs: int = 0
    wanted: int = 0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0

    @property
    def sentence(self) -> str:
        """What must stand beside a column of hours."""
        if not self.wanted:
            return "GPU h: hours of the fine-tuning runs of a row, which start from no pre-training of the study."
        which = f"{self.wanted} pre-training{'s' if self.wanted > 1 else ''} before them"
        which += "" if self.runs == self.wanted else f", {self.runs} of them done"
        took = f"the {which}, which rows share, took {self.gpu_hours:.1f} GPU h, counted in no row"
        return f"GPU h: hours of the fine-tuning runs of a row; {took}."


def shared_pretraining(study: Study, cells: Sequence[Cell]) -> Shared:
    """What the pre-trainings that the cells' runs start from took, each counted once."""
    wanted = dict.fromkeys(run_id for cell in cells for run_id in cell.before)
    results = [run.result for run in study.found(wanted) if run.result]
    hours = [sum(float(result.get(key) or 0.0) for result in results) for key in ("gpu_hours", "cpu_hours")]
    return Shared(len(results), len(wanted), *hours)
