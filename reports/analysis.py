"""Everything computed about a study, once: tables, figures, findings and provenance read it from here.

analysis = analyse(load_study(Path("runs"), "ablation_hierarchical"), np.random.default_rng(0))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hicmae.presets import ENCODERS
from reports import stats
from reports.cells import (
    RESAMPLES,
    Cell,
    Comparison,
    best_is_resolved,
    cells_of,
    compare,
    effects_of,
    fold_differences,
    interval_of,
    same_samples,
)
from reports.corpora import words
from reports.paper import Published, published
from reports.query import Study, Variant
from reports.trials import arranged

ROPE_POINTS = 1.0  # own and published value that differ by less are as good as equal
# A variant that changes nothing else is the method as published, at its size and modality.
_SIZE_AND_MODALITY = {"head.modality", "encoder.dim", "encoder.heads", "encoder.fusion_heads", "decoder.dim", "decoder.heads"}


@dataclass(frozen=True)
class CorpusAnalysis:
    """One corpus of a study: a cell per variant; comparisons and effects are on the headline metric, the first."""

    corpus: str
    title: str
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    effects: tuple[stats.Effect, ...] = ()
    paper: Mapping[tuple[str, str], Published] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    verdict: str = ""  # `not resolvable at k=5, 1 seed` where no difference can be shown: then nothing is ranked
    intervals: Mapping[str, stats.Interval] = field(default_factory=dict)  # of the pooled headline, by variant

    @property
    def headline(self) -> str:
        return self.metrics[0] if self.metrics else ""

    @property
    def complete(self) -> bool:
        return all(cell.complete for cell in self.cells)

    @property
    def folds(self) -> int:
        return max((cell.fold_count for cell in self.cells), default=0)

    @property
    def seeds(self) -> int:
        return max((len(cell.seeds) for cell in self.cells), default=0)

    def cell(self, variant: str) -> Cell:
        return next(cell for cell in self.cells if cell.variant == variant)


@dataclass(frozen=True)
class Analysis:
    """A study with what its numbers say; `problems` lists everything that is not as it should be."""

    study: Study
    corpora: tuple[CorpusAnalysis, ...]
    ranking: stats.Ranking | None
    problems: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return bool(self.corpora) and all(corpus.complete for corpus in self.corpora)


def analyse(study: Study, generator: np.random.Generator, resamples: int = RESAMPLES) -> Analysis:
    """Compute a study. The same records and generator state give the same numbers."""
    corpora = tuple(_corpus(study, corpus, generator, resamples) for corpus in study.corpora)
    problems = [*study.problems, *(problem for corpus in corpora for problem in corpus.problems)]
    return Analysis(study, corpora, _ranking(corpora), tuple(dict.fromkeys(problems)))


def _corpus(study: Study, corpus: str, generator: np.random.Generator, resamples: int) -> CorpusAnalysis:
    cells, problems = cells_of(study, corpus)
    # A variant whose runs the study does not have on this corpus is no row of it.
    cells = [cell for cell in cells if cell.wanted]
    metrics = cells[0].metrics if cells else ()
    comparisons: dict[str, Comparison] = {}
    effects: list[stats.Effect] = []
    baseline = next((cell for cell in cells if cell.variant == study.table.get("baseline")), None)
    if metrics and baseline is not None:
        comparisons = compare(cells, baseline, metrics[0], generator, resamples)
        problems += _not_comparable(cells, baseline)
    if metrics:
        effects = effects_of(study, cells, metrics[0])
    complete = [cell for cell in cells if cell.complete]
    # Numbers of their own, so that those above do not depend on how many cells there are.
    own = generator.spawn(1)[0]
    intervals = {c.variant: interval_of(c, metrics[0], own, resamples) for c in complete} if metrics else {}
    paper = {(c.variant, m): value for c in cells for m in metrics if (value := _published(study, c, m))}
    return CorpusAnalysis(
        corpus,
        words(corpus).title,
        metrics,
        tuple(arranged(study, cells)),
        comparisons,
        tuple(effects),
        paper,
        tuple(problems),
        _verdict(study, complete, comparisons, metrics),
        intervals,
    )


def _verdict(study: Study, complete: list[Cell], comparisons: Mapping[str, Comparison], metrics: tuple[str, ...]) -> str:
    """What the table says instead of ranking: no row differs from the baseline or, where there is none, from the best."""
    if study.search or len(complete) < 2 or not metrics:
        return ""
    shown = any(c.significant for c in comparisons.values()) if comparisons else best_is_resolved(complete, metrics[0])
    folds, seeds = max(cell.fold_count for cell in complete), max(len(cell.seeds) for cell in complete)
    return "" if shown else stats.not_resolvable(folds, seeds)


def _not_comparable(cells: list[Cell], baseline: Cell) -> list[str]:
    others = [cell for cell in cells if cell.complete and baseline.complete and not same_samples(cell, baseline)]
    return [
        f"{cell.corpus}: {cell.variant} and {baseline.variant} have other test samples or labels; not compared" for cell in others
    ]


def _published(study: Study, cell: Cell, metric: str) -> Published | None:
    variant = next(variant for variant in study.variants if variant.name == cell.variant)
    config = next((run.config for run in cell.used), None)
    if config is None or not (variant.paper or _is_the_method(variant)):
        return None
    size = next((name for name, encoder in ENCODERS.items() if encoder.dim == config["encoder"]["dim"]), "")
    return published(words(cell.corpus).title, size, config["head"]["modality"], metric, variant.paper)


def _is_the_method(variant: Variant) -> bool:
    return set(variant.delta) <= _SIZE_AND_MODALITY


def paper_differences(corpus: CorpusAnalysis, variant: str, metric: str) -> list[float]:
    """Own minus published value, per fold: fold by fold where those are published, else against the published total."""
    cell, value = corpus.cell(variant), corpus.paper[variant, metric]
    own = cell.folds[metric]
    return fold_differences(own, dict(value.folds) if value.folds else dict.fromkeys(own, value.value))


def _ranking(corpora: tuple[CorpusAnalysis, ...]) -> stats.Ranking | None:
    """Methods over corpora by headline metric: three or more complete variants on two or more corpora."""
    shown = [corpus for corpus in corpora if corpus.complete and corpus.metrics and not any(c.inner for c in corpus.cells)]
    variants = [cell.variant for cell in shown[0].cells] if shown else []
    if len(shown) < 2 or len(variants) < 3 or any([c.variant for c in corpus.cells] != variants for corpus in shown):
        return None
    scores = {name: [corpus.cell(name).pooled[corpus.headline] for corpus in shown] for name in variants}
    return stats.rank_methods(scores)
