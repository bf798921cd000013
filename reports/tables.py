"""The table of a study as data: columns, rows and fields, before any format. Rounding happens in the renderers.

Corpora with the same metrics share a table, one block of rows each. In each block and metric the best complete value is bold and
the second underlined; equal values share the mark; an incomplete cell shows `3/5` and has no mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hicmae.errors import raise_unknown
from hicmae.metrics import HIGHER_IS_BETTER
from reports import stats
from reports.analysis import Analysis, CorpusAnalysis
from reports.cells import Cell
from reports.paper import STATUS_MARKS, STATUS_WORDS
from reports.query import selection_rule

EXTRAS = ("spread", "folds", "seeds", "samples", "baseline", "paper", "paper_difference", "selection", "gpu_hours", "parameters")


@dataclass(frozen=True)
class Column:
    """`kind` is text, mark (a check mark), number, spread (mean and deviation) or difference (with its interval)."""

    key: str
    heading: str
    kind: str
    decimals: int = 2


@dataclass(frozen=True)
class Field:
    """What stands in one place; `text` is shown where there is no value (empty: a dash). `rank` is best or second."""

    value: Any = None
    text: str = ""
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    rank: str = ""
    mark: str = ""
    link: str = ""


@dataclass(frozen=True)
class Row:
    variant: str
    complete: bool
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Block:
    """The rows of one corpus."""

    corpus: str
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table of a study; `notes` are the sentences of its caption."""

    name: str
    title: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return all(row.complete for block in self.blocks for row in block.rows)


Maker = Callable[[CorpusAnalysis, Cell], Field]


def tables_of(analysis: Analysis, extras: Sequence[str] | None = None) -> list[Table]:
    """A table for every set of corpora that share their metrics. `extras` are columns of EXTRAS; None chooses what there is.

    Raises UsageError, nearest first, for an unknown column.
    """
    for extra in extras or ():
        if extra not in EXTRAS:
            raise_unknown("table column", extra, EXTRAS)
    by_metrics: dict[tuple[str, ...], list[CorpusAnalysis]] = {}
    for corpus in analysis.corpora:
        by_metrics.setdefault(corpus.metrics, []).append(corpus)
    several = len(by_metrics) > 1
    return [_table(analysis, group, extras, several) for group in by_metrics.values()]


def cell_key(study: str, corpus: str, variant: str) -> str:
    """The name of a cell in provenance files and links: `<study>/<corpus>/<variant>`."""
    return f"{study}/{corpus}/{variant}"


def _table(analysis: Analysis, group: list[CorpusAnalysis], extras: Sequence[str] | None, several: bool) -> Table:
    study, metrics = analysis.study, group[0].metrics
    chosen = _usual_extras(analysis, group) if extras is None else list(extras)
    columns = [*_variant_columns(analysis), *(_metric_column(metric) for metric in metrics)]
    if metrics:
        columns += [_EXTRA_COLUMNS[extra](metrics[0]) for extra in chosen]
    blocks = tuple(_block(analysis, corpus, [make for _, make in columns]) for corpus in group)
    name = f"{study.name}-{_slug('-'.join(corpus.corpus for corpus in group))}" if several else study.name
    return Table(name, study.title, tuple(column for column, _ in columns), blocks, tuple(_notes(analysis, group, chosen)))


def _block(analysis: Analysis, corpus: CorpusAnalysis, makers: list[Maker]) -> Block:
    rows = tuple(Row(cell.variant, cell.complete, tuple(make(corpus, cell) for make in makers)) for cell in corpus.cells)
    return Block(corpus.corpus, corpus.title, rows)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:80].strip("_")


def _usual_extras(analysis: Analysis, group: list[CorpusAnalysis]) -> list[str]:
    chosen = ["spread", "folds"]
    chosen += ["seeds"] if any(corpus.seeds > 1 for corpus in group) else []
    chosen += ["baseline"] if any(corpus.comparisons for corpus in group) else []
    chosen += ["paper", "paper_difference"] if any(corpus.paper for corpus in group) else []
    rules = {_rule(cell) for corpus in group for cell in corpus.cells if cell.used}
    return [*chosen, *(["selection"] if len(rules) > 1 else [])]


def _variant_columns(analysis: Analysis) -> list[tuple[Column, Maker]]:
    """The variant's name and what the study shows of it: check marks for switches, text for the rest."""
    found: list[tuple[Column, Maker]] = [(Column("variant", "Variant", "text"), _variant_name)]
    for key in analysis.study.table.get("columns") or ():
        shown = {variant.name: variant.columns.get(key) for variant in analysis.study.variants}
        kind = "mark" if all(isinstance(value, bool) for value in shown.values()) else "text"
        found.append((Column(f"variant.{key}", key, kind), _shown(shown)))
    return found


def _variant_name(corpus: CorpusAnalysis, cell: Cell) -> Field:
    return Field(text=cell.variant)


def _shown(values: Mapping[str, Any]) -> Maker:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        value = values[cell.variant]
        return Field(value=value) if isinstance(value, bool) else Field(text="" if value is None else str(value))

    return make


def _metric_column(metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        if not cell.complete:
            return Field(text=cell.progress, link=cell.variant)
        return Field(value=cell.pooled[metric], rank=ranks(corpus, metric).get(cell.variant, ""), link=cell.variant)

    return Column(f"pooled.{metric}", metric, "number"), make


def ranks(corpus: CorpusAnalysis, metric: str) -> dict[str, str]:
    """variant -> best or second, on unrounded values of complete cells; a row alone has no rank."""
    sign = 1 if HIGHER_IS_BETTER.get(metric.partition(" ")[0], True) else -1
    values = {cell.variant: sign * cell.pooled[metric] for cell in corpus.cells if cell.complete}
    if len(values) < 2:
        return {}
    ordered = sorted(set(values.values()), reverse=True)
    names = dict(zip(ordered, ("best", "second"), strict=False))
    return {variant: names[value] for variant, value in values.items() if value in names}


def _spread(metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        values = list(cell.folds[metric].values())
        if not cell.complete or len(values) < 2:
            return Field()
        return Field(value=float(np.mean(values)), spread=float(np.std(values, ddof=1)))

    return Column(f"spread.{metric}", f"{metric} over folds", "spread"), make


def _folds(metric: str) -> tuple[Column, Maker]:
    return Column("folds", "Folds", "number", 0), lambda corpus, cell: Field(value=len(cell.folds[metric]))


def _seeds(metric: str) -> tuple[Column, Maker]:
    return Column("seeds", "Seeds", "number", 0), lambda corpus, cell: Field(value=len(cell.seeds))


def _samples(metric: str) -> tuple[Column, Maker]:
    return Column("samples", "Samples", "number", 0), lambda corpus, cell: Field(value=cell.samples or None)


def _baseline(metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        comparison = corpus.comparisons.get(cell.variant)
        if comparison is None:
            return Field()
        difference, low, high = comparison.difference, comparison.difference.low, comparison.difference.high
        if difference.folds < 2:
            difference_of_pooled = comparison.pooled
            return Field(difference_of_pooled.estimate, low=difference_of_pooled.low, high=difference_of_pooled.high)
        return Field(difference.mean, low=low, high=high, mark="*" if comparison.significant else "")

    return Column(f"baseline.{metric}", f"{metric} to baseline", "difference"), make


def _paper(metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        value = corpus.paper.get((cell.variant, metric))
        return Field() if value is None else Field(value.value, mark=STATUS_MARKS[value.status])

    return Column(f"paper.{metric}", f"{metric}, paper", "number"), make


def _paper_difference(metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        value = corpus.paper.get((cell.variant, metric))
        return Field() if value is None or not cell.complete else Field(cell.pooled[metric] - value.value)

    return Column(f"paper_difference.{metric}", "to paper", "difference"), make


def _selection(metric: str) -> tuple[Column, Maker]:
    return Column("selection", "Epoch", "text"), lambda corpus, cell: Field(text=_rule(cell))


def _rule(cell: Cell) -> str:
    return selection_rule(cell.used[0]) if cell.used else ""


def _gpu_hours(metric: str) -> tuple[Column, Maker]:
    return Column("gpu_hours", "GPU h", "number", 1), lambda corpus, cell: Field(
        value=cell.total("gpu_hours") if cell.used else None
    )


def _parameters(metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        count = next((run.result.get("parameters") for run in cell.used), None)
        return Field(value=count / 1e6 if count else None)

    return Column("parameters", "Parameters (M)", "number", 1), make


_EXTRA_COLUMNS: dict[str, Callable[[str], tuple[Column, Maker]]] = {
    "spread": _spread,
    "folds": _folds,
    "seeds": _seeds,
    "samples": _samples,
    "baseline": _baseline,
    "paper": _paper,
    "paper_difference": _paper_difference,
    "selection": _selection,
    "gpu_hours": _gpu_hours,
    "parameters": _parameters,
}


def _notes(analysis: Analysis, group: list[CorpusAnalysis], chosen: Sequence[str]) -> list[str]:
    """The sentences of the caption: what the numbers are, and what they may not be taken for."""
    study = analysis.study
    notes = [f"Metrics over all folds' test samples together ({study.selection} epoch)."]
    notes.append("Bold is the largest, underlined the second; a cell such as 3/5 is incomplete.")
    if "spread" in chosen:
        notes.append("Over folds: mean and standard deviation.")
    if "baseline" in chosen:
        notes += _baseline_notes(str(study.table["baseline"]), group)
    if "paper" in chosen:
        marks = sorted({STATUS_MARKS[value.status] for corpus in group for value in corpus.paper.values()} - {""})
        notes += [f"Paper values: {'; '.join(f'{mark} {STATUS_WORDS[mark]}' for mark in marks)}."] if marks else []
    if study.smoke:
        notes.append("Smoke size on generated clips: shows that the program works, not what the method reaches.")
    return notes


def _baseline_notes(baseline: str, group: list[CorpusAnalysis]) -> list[str]:
    notes = [
        f"To baseline: difference to {baseline!r}, mean over folds with the 95 % interval of the corrected resampled t test; "
    ]
    notes[0] += f"* has p < {stats.ALPHA:g} after Holm's correction."
    for corpus in group:
        if corpus.comparisons and not any(comparison.significant for comparison in corpus.comparisons.values()):
            verdict = stats.not_resolvable(corpus.folds, corpus.seeds)
            notes.append(f"{corpus.title}: differences to the baseline are {verdict}; bold marks a number, not a winner.")
    return notes
