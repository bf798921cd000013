"""What the parent run of a variant shows in MLflow: its cells as a Markdown table, and the pooled metrics as metrics.

from hicmae.tracking import sync
sync(Path("runs"), summarise=summaries)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hicmae.tracking.content import Summary
from reports.cells import Cell, cells_of
from reports.corpora import words
from reports.query import Study, load_study


def summaries(runs_root: Path, study_name: str) -> dict[str, Summary]:
    """variant -> summary, for every variant of a study. Raises RecordError for a damaged study file."""
    study = load_study(runs_root, study_name)
    by_variant: dict[str, list[Cell]] = {variant.name: [] for variant in study.variants}
    for corpus in study.corpora:
        for cell in cells_of(study, corpus)[0]:
            if cell.wanted:
                by_variant[cell.variant].append(cell)
    return {name: _summary(study, name, cells) for name, cells in by_variant.items() if cells}


def _summary(study: Study, variant: str, cells: list[Cell]) -> Summary:
    lines = [f"**{_plain(variant)}** of *{_plain(study.title or study.name)}*", ""]
    lines += ["| corpus | metric | all folds | over folds | runs |", "|---|---|---|---|---|"]
    metrics: dict[str, float] = {}
    for cell in cells:
        for metric in cell.metrics:
            lines.append(_line(cell, metric))
            name = metric if len(cells) == 1 else f"{cell.corpus}/{metric}"
            metrics |= {f"pooled/{name}": cell.pooled[metric]} if cell.complete else {}
    lines += ["", f"All folds: computed on the test samples of all folds together, {study.selection} epoch."]
    lines += ["", "```", study.command, "```"]
    problems = [f"- {run.label}: {run.problem}" for cell in cells for run in cell.wanted if run.problem]
    return Summary("\n".join([*lines, *(["", "Runs that do not count:", *problems] if problems else [])]), metrics)


def _line(cell: Cell, metric: str) -> str:
    values = list(cell.folds[metric].values())
    pooled = f"{cell.pooled[metric]:.2f}" if cell.complete else cell.progress
    spread = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" if cell.complete and len(values) > 1 else "–"
    return f"| {_plain(words(cell.corpus).title)} | {metric} | {pooled} | {spread} | {cell.progress} |"


def _plain(text: str) -> str:
    """Text that Markdown prints as itself."""
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>()#+-.!|" else character for character in text)
