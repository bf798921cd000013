"""The table of a study as data: columns, rows and fields, before any format. Rounding happens in the renderers.

Corpora with the same metrics share a table, one block of rows each. In each block and metric the best complete value is bold and
the second underlined; equal values share the mark; an incomplete cell shows `3/5` and has no mark. A block in which no difference
can be shown has no marks: its verdict stands instead. Of a search with many trials a page shows the best, the files have all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hicmae.errors import raise_unknown
from hicmae.metrics import HIGHER_IS_BETTER
from reports import captions, stats, trials
from reports.analysis import ROPE_POINTS, Analysis, CorpusAnalysis, paper_differences
from reports.cells import Cell
from reports.paper import STATUS_MARKS
from reports.query import Study, selection_rule
from reports.shared import Shared, shared_pretraining

EXTRAS = (
    *("spread", "interval", "folds", "seeds", "samples", "baseline", "pooled_difference", "mcnemar", "wilcoxon"),
    *("paper", "paper_difference", "equivalence", "selection", "gpu_hours", "parameters"),
)
_OF_PAPER = ("paper", "paper_difference", "equivalence")


@dataclass(frozen=True)
class Column:
    """`kind` is text, mark (a check mark), number, spread (mean and deviation), interval or difference (with its interval)."""

    key: str
    heading: str
    kind: str
    decimals: int = 2


@dataclass(frozen=True)
class Field:
    """What stands in one place; `text` is shown where there is no value (empty: a dash). `rank` is best or second.

    `status` says how sure a published value is: exact, two-sources, single or digitised.
    """

    value: Any = None
    text: str = ""
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    rank: str = ""
    mark: str = ""
    link: str = ""
    status: str = ""


@dataclass(frozen=True)
class Row:
    """`shown` is False for a row that only the CSV and JSON files have."""

    variant: str
    complete: bool
    fields: tuple[Field, ...]
    shown: bool = True


@dataclass(frozen=True)
class Block:
    """The rows of one corpus; `verdict` is the line that stands under them where nothing can be ranked."""

    corpus: str
    title: str
    rows: tuple[Row, ...]
    verdict: str = ""

    @property
    def shown(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.shown)


@dataclass(frozen=True)
class EffectRow:
    """What a module does to a metric (`kind` effect), or two and more together beyond that (interaction), over folds."""

    corpus: str
    metric: str
    kind: str
    factors: tuple[str, ...]
    mean: float
    low: float
    high: float
    p: float
    folds: int
    resolved: bool


@dataclass(frozen=True)
class Table:
    """A table of a study; `notes` are the sentences of its caption.

    `effects` are those of a full two-level design; `pretraining` is what the rows' shared pre-trainings took, in no row's hours.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    effects: tuple[EffectRow, ...] = ()
    pretraining: Shared = Shared()

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
    columns = [*_variant_columns(analysis), *(_metric_column(study, metric) for metric in metrics)]
    if metrics:
        columns += [_EXTRA_COLUMNS[extra](study, metric) for extra in chosen for metric in _metrics_of(extra, group)]
    blocks = tuple(_block(analysis, corpus, [make for _, make in columns]) for corpus in group)
    name = f"{study.name}-{_slug('-'.join(corpus.corpus for corpus in group))}" if several else study.name
    notes = tuple(captions.notes(analysis, group, chosen))
    effects = tuple(row for corpus in group for row in _effect_rows(corpus))
    shared = shared_pretraining(study, [cell for corpus in group for cell in corpus.cells])
    return Table(name, study.title, tuple(column for column, _ in columns), blocks, notes, effects, shared)


def _effect_rows(corpus: CorpusAnalysis) -> list[EffectRow]:
    return [
        EffectRow(
            corpus.corpus,
            corpus.headline,
            "effect" if len(effect.factors) == 1 else "interaction",
            effect.factors,
            effect.difference.mean,
            effect.difference.low,
            effect.difference.high,
            effect.difference.p,
            effect.difference.folds,
            effect.difference.resolved,
        )
        for effect in corpus.effects
    ]


def _block(analysis: Analysis, corpus: CorpusAnalysis, makers: list[Maker]) -> Block:
    seen = trials.shown(analysis.study, corpus.cells)
    rows = [
        Row(cell.variant, cell.complete, tuple(make(corpus, cell) for make in makers), cell.variant in seen)
        for cell in corpus.cells
    ]
    verdict = f"Which row is best is {corpus.verdict} ({corpus.headline})." if corpus.verdict else ""
    return Block(corpus.corpus, corpus.title, tuple(rows), verdict)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:80].strip("_")


def _metrics_of(extra: str, group: list[CorpusAnalysis]) -> list[str]:
    """The metrics that get a column: the headline, but every one with a published value where the paper is compared with."""
    metrics = group[0].metrics
    published = {metric for corpus in group for _, metric in corpus.paper} if extra in _OF_PAPER else set()
    return [metric for metric in metrics if metric in published] or [metrics[0]]


def _usual_extras(analysis: Analysis, group: list[CorpusAnalysis]) -> list[str]:
    chosen = ["spread", "folds"]
    chosen += ["seeds"] if any(corpus.seeds > 1 for corpus in group) else []
    chosen += ["baseline"] if any(corpus.comparisons for corpus in group) else []
    chosen += ["paper", "paper_difference"] if any(corpus.paper for corpus in group) else []
    rules = {_rule(analysis.study, cell) for corpus in group for cell in corpus.cells if cell.used}
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


def _metric_column(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        if not cell.complete:
            return Field(text=trials.progress(study, cell), link=cell.variant)
        rank = "" if corpus.verdict else ranks(corpus, metric).get(cell.variant, "")
        return Field(value=cell.pooled[metric], rank=rank, link=cell.variant)

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


def _spread(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        values = list(cell.folds[metric].values())
        if not cell.complete or len(values) < 2:
            return Field()
        return Field(value=float(np.mean(values)), spread=float(np.std(values, ddof=1)))

    return Column(f"spread.{metric}", f"{metric} over folds", "spread"), make


def _interval(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        found = corpus.intervals.get(cell.variant)
        return Field() if found is None or np.isnan(found.low) else Field(found.estimate, low=found.low, high=found.high)

    return Column(f"interval.{metric}", f"{metric}, 95 % interval", "interval", 1), make


def _folds(study: Study, metric: str) -> tuple[Column, Maker]:
    return Column("folds", "Folds", "number", 0), lambda corpus, cell: Field(value=len(cell.folds[metric]))


def _seeds(study: Study, metric: str) -> tuple[Column, Maker]:
    return Column("seeds", "Seeds", "number", 0), lambda corpus, cell: Field(value=len(cell.seeds))


def _samples(study: Study, metric: str) -> tuple[Column, Maker]:
    return Column("samples", "Samples", "number", 0), lambda corpus, cell: Field(value=cell.samples or None)


def _baseline(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        comparison = corpus.comparisons.get(cell.variant)
        if comparison is None:
            return Field()
        found, mark = comparison.difference, "*" if comparison.significant else ""
        if found.folds < 2:
            pooled = comparison.pooled
            return Field(pooled.estimate, low=pooled.low, high=pooled.high, mark=mark)
        return Field(found.mean, low=found.low, high=found.high, mark=mark)

    return Column(f"baseline.{metric}", f"{metric} to baseline", "difference"), make


def _pooled_difference(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        comparison = corpus.comparisons.get(cell.variant)
        pooled = None if comparison is None else comparison.pooled
        return Field() if pooled is None else Field(pooled.estimate, low=pooled.low, high=pooled.high)

    return Column(f"pooled_difference.{metric}", f"pooled {metric} to baseline", "difference"), make


def _mcnemar(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        comparison = corpus.comparisons.get(cell.variant)
        found = None if comparison is None else comparison.disagreement
        return Field() if found is None else Field(found.p)

    return Column("mcnemar", "p, McNemar", "number", 3), make


def _wilcoxon(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        comparison = corpus.comparisons.get(cell.variant)
        known = comparison is not None and comparison.difference.folds > 1 and not np.isnan(comparison.wilcoxon_p)
        return Field(comparison.wilcoxon_p) if comparison is not None and known else Field()

    return Column("wilcoxon", "p, Wilcoxon", "number", 3), make


def _equivalence(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        if (cell.variant, metric) not in corpus.paper or not cell.complete:
            return Field()
        inside = stats.rope(paper_differences(corpus, cell.variant, metric), cell.test_over_train, ROPE_POINTS).inside
        return Field() if np.isnan(inside) else Field(inside)

    return Column(f"equivalence.{metric}", f"{metric}, P(as paper)", "number", 2), make


def _paper(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        value = corpus.paper.get((cell.variant, metric))
        return Field() if value is None else Field(value.value, mark=STATUS_MARKS[value.status], status=value.status)

    return Column(f"paper.{metric}", f"{metric}, paper", "number"), make


def _paper_difference(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        value = corpus.paper.get((cell.variant, metric))
        return Field() if value is None or not cell.complete else Field(cell.pooled[metric] - value.value)

    return Column(f"paper_difference.{metric}", f"{metric} to paper", "difference"), make


def _selection(study: Study, metric: str) -> tuple[Column, Maker]:
    return Column("selection", "Epoch", "text"), lambda corpus, cell: Field(text=_rule(study, cell))


def _rule(study: Study, cell: Cell) -> str:
    """The rule of the runs; but a study of oracle epochs shows those, whatever else its runs recorded."""
    if not cell.used:
        return ""
    return study.selection if study.selection == "oracle" else selection_rule(cell.used[0])


def _gpu_hours(study: Study, metric: str) -> tuple[Column, Maker]:
    return Column("gpu_hours", "GPU h", "number", 1), lambda corpus, cell: Field(
        value=cell.total("gpu_hours") if cell.used else None
    )


def _parameters(study: Study, metric: str) -> tuple[Column, Maker]:
    def make(corpus: CorpusAnalysis, cell: Cell) -> Field:
        count = next((run.result.get("parameters") for run in cell.used), None)
        return Field(value=count / 1e6 if count else None)

    return Column("parameters", "Parameters (M)", "number", 1), make


_EXTRA_COLUMNS: dict[str, Callable[[Study, str], tuple[Column, Maker]]] = {
    "spread": _spread,
    "interval": _interval,
    "folds": _folds,
    "seeds": _seeds,
    "samples": _samples,
    "baseline": _baseline,
    "pooled_difference": _pooled_difference,
    "mcnemar": _mcnemar,
    "wilcoxon": _wilcoxon,
    "paper": _paper,
    "paper_difference": _paper_difference,
    "equivalence": _equivalence,
    "selection": _selection,
    "gpu_hours": _gpu_hours,
    "parameters": _parameters,
}
