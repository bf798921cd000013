"""Pictures of a study, PDF and PNG, in one style.

Things are told apart by marker and dash as well as colour, for grey prints and colour-blind eyes; the colours are those of
Okabe and Ito (2008). The same numbers give the same files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hicmae.metrics import confusion
from hicmae.pictures import confusion_figure, style
from hicmae.record import RunRecord
from reports.analysis import Analysis, CorpusAnalysis
from reports.corpora import class_names, words
from reports.stats import ALPHA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
WIDTH_IN = 6.0


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
        text = "Critical differences: mean rank over the corpora (1 is best); a bar joins methods whose difference is not shown."
        pictures.append(_saved(folder / "ranks", text, lambda: _ranks(analysis)))
    return pictures + _of_search(runs_root / "_studies" / analysis.study.name / "figures", folder)


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
    text = f"{title}: {metric} of every fold; the bar is the mean over folds."
    pictures.append(_saved(folder / f"folds-{stem}", text, lambda: _folds(corpus)))
    curves = _curves(analysis, corpus, runs_root)
    if curves:
        text = f"{title}: training loss and test {metric} by epoch, mean over runs."
        pictures.append(_saved(folder / f"curves-{stem}", text, lambda: _learning(curves, metric)))
    best = _best_classifier(corpus)
    if best:
        text = f"{title}: confusion of {best[0]} in percent of each class, all folds."
        pictures.append(
            _saved(
                folder / f"confusion-{stem}", text, lambda: confusion_figure(best[1], class_names(corpus.corpus, len(best[1])))
            )
        )
    return pictures


def _saved(stem: Path, caption: str, draw: Callable[[], Figure]) -> Picture:
    picture = Picture(stem, caption)
    with style():
        figure = draw()
        figure.savefig(picture.png, dpi=160, metadata={"Software": None})
        figure.savefig(picture.pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
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


def _folds(corpus: CorpusAnalysis) -> Figure:
    cells = [cell for cell in corpus.cells if cell.folds[corpus.headline]]
    figure, (axes,) = _figure(0.8 + 0.32 * len(cells))
    folds = sorted({fold for cell in cells for fold in cell.folds[corpus.headline]})
    for place, cell in enumerate(cells):
        values = cell.folds[corpus.headline]
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
                label=f"fold {fold}" if not place else None,
            )
    axes.set_yticks(range(len(cells)), [cell.variant + ("" if cell.complete else f" ({cell.progress})") for cell in cells])
    axes.invert_yaxis()
    axes.set_xlabel(corpus.headline)
    axes.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=min(len(folds), 6))
    return figure


Curves = dict[str, dict[str, list[tuple[float, float]]]]


def _curves(analysis: Analysis, corpus: CorpusAnalysis, runs_root: Path) -> Curves:
    """variant -> train or test -> (epoch, mean over the runs that have the epoch)."""
    curves: Curves = {}
    for cell in corpus.cells:
        points: dict[str, dict[float, list[float]]] = {"train": {}, "test": {}}
        for run in cell.used:
            for point in RunRecord(runs_root / run.run_id).metrics():
                value = point.get("values", {}).get("loss" if point["split"] == "train" else corpus.headline)
                if point["split"] in points and value is not None:
                    points[point["split"]].setdefault(float(point["epoch"]), []).append(value)
        curves[cell.variant] = {
            split: [(epoch, float(np.mean(v))) for epoch, v in sorted(p.items())] for split, p in points.items()
        }
    return {variant: splits for variant, splits in curves.items() if splits["train"]}


def _learning(curves: Curves, metric: str) -> Figure:
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
    for place, name in zip(axes, ("Training loss", f"Test {metric}"), strict=True):
        place.set_xlabel("Epoch")
        place.set_title(name)
        place.grid()
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _best_classifier(corpus: CorpusAnalysis) -> tuple[str, NDArray[np.int64]] | None:
    """The complete row with the largest headline value and its confusion counts over all folds (first seed)."""
    complete = [cell for cell in corpus.cells if cell.complete]
    if not complete:
        return None
    best = max(complete, key=lambda cell: cell.pooled[corpus.headline])
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
