"""Pictures of a study, PDF and PNG, in one style.

Things are told apart by marker and dash as well as colour, for grey prints and colour-blind eyes; the colours are those of
Okabe and Ito (2008). The same numbers give the same files.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hicmae.metrics import HIGHER_IS_BETTER, confusion
from hicmae.pictures import COLOURS, DASHES, MARKERS, confusion_figure, style
from hicmae.record import RunRecord
from reports.analysis import Analysis, CorpusAnalysis
from reports.cells import Cell, best_cell
from reports.corpora import class_names, words
from reports.query import StudyRun
from reports.run_figures import SHOWN_PRETRAININGS, draw_reconstructions, draw_scaling, pretrainings, scaling
from reports.stats import ALPHA
from reports.trials import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 6.0
SHOWN_ROWS = 20
SHOWN_CURVES = 8


@dataclass(frozen=True)
class Picture:
    """A figure on disk: `stem` has a .pdf and a .png."""

    stem: Path
    caption: str

    @property
    def png(self) -> Path:
        return self.stem.with_name(self.stem.name + ".png")

    @property
    def pdf(self) -> Path:
        return self.stem.with_name(self.stem.name + ".pdf")


def draw_all(analysis: Analysis, runs_root: Path, folder: Path) -> list[Picture]:
    """Draw every picture that the study has numbers for."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for corpus in analysis.corpora:
        if corpus.metrics and any(cell.used for cell in corpus.cells):
            pictures += _of_corpus(analysis, corpus, runs_root, folder)
    if any(corpus.paper for corpus in analysis.corpora):
        pictures.append(_saved(folder / "paper", "Own values against the published ones (hollow).", lambda: _paper(analysis)))
    if analysis.ranking:
        shown_apart = analysis.ranking.friedman_p < ALPHA
        text = "Critical differences: mean rank over the corpora (1 is best); a bar joins methods whose difference is not shown."
        text += "" if shown_apart else f" Friedman's test shows no difference at all (p = {analysis.ranking.friedman_p:.2g})."
        pictures.append(_saved(folder / "ranks", text, lambda: _ranks(analysis)))
    drawn = pretrainings(analysis, runs_root)
    if drawn:
        pictures.append(_reconstructions(drawn, folder))
    return pictures + _of_search(runs_root / "_studies" / analysis.study.name / "figures", folder)


def _reconstructions(drawn: list[tuple[StudyRun, Path]], folder: Path) -> Picture:
    with style():
        figure, unreadable = draw_reconstructions(drawn)
    text = "Reconstructions of pre-training, as the runs drew them: input, what the encoder saw, output."
    text += f" {min(len(drawn), SHOWN_PRETRAININGS)} of {len(drawn)} pre-trainings." if len(drawn) > SHOWN_PRETRAININGS else ""
    text += f" Unreadable: {', '.join(unreadable)}." if unreadable else ""
    return _saved(folder / "reconstructions", text, lambda: figure, dpi=220)


def _of_search(drawn: Path, folder: Path) -> list[Picture]:
    """The pictures that a hyper-parameter search has drawn of its trials."""
    pictures = []
    for png in sorted(drawn.glob("*.png")):
        picture = Picture(folder / f"search-{png.stem}", f"Search: {png.stem.replace('_', ' ')} of the trials.")
        shutil.copyfile(png, picture.png)
        shutil.copyfile(png.with_suffix(".pdf"), picture.pdf)
        pictures.append(picture)
    return pictures


def _of_corpus(analysis: Analysis, corpus: CorpusAnalysis, runs_root: Path, folder: Path) -> list[Picture]:
    stem, title, metric = corpus.corpus.replace("/", "_").replace(":", "_"), corpus.title, corpus.headline
    pictures = []
    if corpus.effects:
        text = f"{title}: effects and interactions of the modules on {metric}, 95 % intervals; filled where an effect is shown."
        pictures.append(_saved(folder / f"effects-{stem}", text, lambda: _effects(corpus)))
    rows = _rows_shown(analysis, corpus)
    few = f" {len(rows)} of {len(corpus.cells)} rows." if len(rows) < len(corpus.cells) else ""
    if any(cell.folds[metric] for cell in rows):
        text = f"{title}: {metric} of every fold; the bar is the mean over folds.{few}"
        pictures.append(_saved(folder / f"folds-{stem}", text, lambda: _folds(rows, metric)))
    curves = _curves(rows[:SHOWN_CURVES], metric, runs_root)
    if curves:
        part = "validation" if analysis.study.selection == "inner" else "test"
        text = f"{title}: training loss and {part} {metric} by epoch, mean over runs."
        text += f" {len(curves)} of {len(corpus.cells)} rows." if len(curves) < len(corpus.cells) else ""
        pictures.append(_saved(folder / f"curves-{stem}", text, lambda: _learning(curves, f"{part.title()} {metric}")))
    for series in scaling(analysis.study, corpus):
        name = re.sub(r"[^A-Za-z0-9]+", "_", series.quantity.lower()).strip("_")
        drawn = words(corpus.corpus).drawn
        text = f"{title}: {metric} against {series.quantity.lower()}, with 95 % intervals (bootstrap of {drawn})."
        pictures.append(_saved(folder / f"scaling-{stem}-{name}", text, lambda s=series: draw_scaling(corpus, s)))  # type: ignore[misc]
    best = _best_classifier(corpus)
    if best:
        text = f"{title}: confusion of {best[0]} in percent of each class, all folds."
        pictures.append(
            _saved(
                folder / f"confusion-{stem}", text, lambda: confusion_figure(best[1], class_names(corpus.corpus, len(best[1])))
            )
        )
    return pictures


def _rows_shown(analysis: Analysis, corpus: CorpusAnalysis) -> list[Cell]:
    """The rows of figures that have a line each: those of the table, of many the baseline and the best."""
    seen = shown(analysis.study, corpus.cells)
    rows = [cell for cell in corpus.cells if cell.variant in seen]
    if len(rows) <= SHOWN_ROWS:
        return rows
    sign = -1 if HIGHER_IS_BETTER.get(corpus.headline.partition(" ")[0], True) else 1
    complete = sorted((cell for cell in rows if cell.complete), key=lambda cell: sign * cell.pooled[corpus.headline])
    first = [cell for cell in rows if cell.variant == analysis.study.table.get("baseline")]
    return [*first, *(cell for cell in complete if cell not in first)][:SHOWN_ROWS]


def _saved(stem: Path, caption: str, draw: Callable[[], Figure], dpi: int = 160) -> Picture:
    picture = Picture(stem, caption)
    with style():
        figure = draw()
        figure.savefig(picture.png, dpi=dpi, metadata={"Software": None})
        figure.savefig(picture.pdf, dpi=dpi, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return picture


def _figure(height_in: float, columns: int = 1, width_in: float = WIDTH_IN) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in))
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def _effects(corpus: CorpusAnalysis) -> Figure:
    figure, (axes,) = _figure(0.6 + 0.32 * len(corpus.effects))
    for place, effect in enumerate(corpus.effects):
        difference, colour = effect.difference, COLOURS[1] if len(effect.factors) == 1 else COLOURS[7]
        if difference.low == difference.low:
            axes.plot([difference.low, difference.high], [place, place], color=colour, linewidth=2)
        face = colour if difference.resolved else "white"
        axes.plot(
            difference.mean,
            place,
            marker=MARKERS[min(len(effect.factors), 3) - 1],
            color=colour,
            markerfacecolor=face,
            markersize=7,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(corpus.effects)), [" × ".join(effect.factors) for effect in corpus.effects])
    axes.invert_yaxis()
    axes.set_xlabel(f"Effect on {corpus.headline} (points)")
    axes.grid(axis="x")
    return figure


def _folds(rows: Sequence[Cell], metric: str) -> Figure:
    cells = [cell for cell in rows if cell.folds[metric]]
    figure, (axes,) = _figure(0.8 + 0.32 * len(cells))
    folds = sorted({fold for cell in cells for fold in cell.folds[metric]})
    named: set[int] = set()
    for place, cell in enumerate(cells):
        values = cell.folds[metric]
        mean = float(np.mean(list(values.values())))
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color="black", linewidth=2)
        for fold, value in values.items():
            index = folds.index(fold)
            axes.plot(
                value,
                place,
                MARKERS[index % 8],
                color=COLOURS[1 + index % 6],
                markersize=6,
                label=None if fold in named else f"fold {fold}",
            )
            named.add(fold)
    axes.set_yticks(range(len(cells)), [cell.variant + ("" if cell.complete else f" ({cell.progress})") for cell in cells])
    axes.invert_yaxis()
    axes.set_xlabel(metric)
    axes.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=min(len(folds), 6))
    return figure


Curves = dict[str, dict[str, list[tuple[float, float]]]]


def _curves(rows: Sequence[Cell], metric: str, runs_root: Path) -> Curves:
    """variant -> train or test -> (epoch, mean over the runs that have the epoch); validation where test was never read."""
    curves: Curves = {}
    for cell in rows:
        points: dict[str, dict[float, list[float]]] = {"train": {}, "test": {}}
        for run in cell.used:
            for point in RunRecord(runs_root / run.run_id).metrics():
                split = "test" if cell.inner and point.get("split") == "validation" else point.get("split")
                value = point.get("values", {}).get("loss" if split == "train" else metric)
                if split in points and value is not None:
                    points[split].setdefault(float(point["epoch"]), []).append(value)
        curves[cell.variant] = {
            split: [(epoch, float(np.mean(v))) for epoch, v in sorted(p.items())] for split, p in points.items()
        }
    return {variant: splits for variant, splits in curves.items() if splits["train"]}


def _learning(curves: Curves, metric: str) -> Figure:
    """`metric` with the part that it was measured on: the title of the right pane."""
    figure, axes = _figure(3.0, columns=2)
    for index, (variant, splits) in enumerate(curves.items()):
        look: dict[str, Any] = {
            "color": COLOURS[index % 8],
            "linestyle": DASHES[index // 2 % 4],
            "marker": MARKERS[index % 8],
            "markersize": 4,
        }
        for place, split in zip(axes, ("train", "test"), strict=True):
            epochs, values = zip(*splits[split], strict=True) if splits[split] else ((), ())
            place.plot(
                epochs,
                values,
                label=variant if split == "train" else None,
                markevery=max(1, len(epochs) // 8),
                linewidth=1.2,
                **look,
            )
    for place, name in zip(axes, ("Training loss", metric), strict=True):
        place.set_xlabel("Epoch")
        place.locator_params(axis="x", integer=True)
        place.set_title(name)
        place.grid()
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _best_classifier(corpus: CorpusAnalysis) -> tuple[str, NDArray[np.int64]] | None:
    """The complete row with the largest headline value and its confusion counts over all folds (first seed)."""
    complete = [cell for cell in corpus.cells if cell.complete]
    if not complete:
        return None
    best = best_cell(complete, corpus.headline)
    predictions = best.pooled_predictions[min(best.pooled_predictions)]
    if not predictions.is_classification:
        return None
    return best.variant, confusion(predictions.truth, predictions.answers, len(words(corpus.corpus).classes) or None)


def _paper(analysis: Analysis) -> Figure:
    """A dot plot: one line per corpus, metric and variant with a published value."""
    rows = [
        (c, variant, metric, value)
        for c in analysis.corpora
        for (variant, metric), value in c.paper.items()
        if c.cell(variant).complete
    ]
    figure, (axes,) = _figure(1.0 + 0.28 * len(rows))
    for place, (corpus, variant, metric, value) in enumerate(rows):
        own = corpus.cell(variant).pooled[metric]
        axes.plot([own, value.value], [place, place], color="#999999", linewidth=1)
        axes.plot(own, place, "o", color=COLOURS[1], label="own" if not place else None)
        axes.plot(value.value, place, "s", color="black", markerfacecolor="white", label="published" if not place else None)
    axes.set_yticks(range(len(rows)), [f"{corpus.title}, {variant}: {metric}" for corpus, variant, metric, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("Percent")
    axes.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _ranks(analysis: Analysis) -> Figure:
    """Critical-difference diagram: methods at their mean rank; bars join runs of methods none of whose pairs differs."""
    ranking = analysis.ranking
    assert ranking is not None
    order = sorted(ranking.mean_ranks, key=lambda name: ranking.mean_ranks[name])
    bars = cliques(order, lambda a, b: _differs(ranking.pairs, a, b))
    figure, (axes,) = _figure(1.0 + 0.26 * len(order) + 0.15 * len(bars))
    for place, name in enumerate(order):
        axes.plot(ranking.mean_ranks[name], place, MARKERS[place % 8], color=COLOURS[place % 8])
    for index, (first, last) in enumerate(bars):
        height = len(order) + 0.6 * index
        axes.plot(
            [ranking.mean_ranks[order[first]], ranking.mean_ranks[order[last]]], [height, height], color="black", linewidth=3
        )
    axes.set_xlim(0.8, len(order) + 0.2)
    axes.set_yticks(range(len(order)), order)
    axes.margins(y=0.15)
    axes.invert_yaxis()
    axes.set_xlabel("Mean rank (1 is best)")
    axes.grid(axis="x")
    return figure


def _differs(pairs: dict[tuple[str, str], float], first: str, second: str) -> bool:
    return pairs.get((first, second), pairs.get((second, first), float("nan"))) < ALPHA


def cliques(order: Sequence[str], differs: Callable[[str, str], bool]) -> list[tuple[int, int]]:
    """Longest stretches (first, last index) of the order in which no pair differs; stretches of one method are left out."""
    found: list[tuple[int, int]] = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and not any(differs(order[i], order[last + 1]) for i in range(first, last + 1)):
            last += 1
        if last > first and not (found and found[-1][1] >= last):
            found.append((first, last))
    return found
