"""Figures about single runs and series of them: reconstructions of pre-trainings, and scaling curves.

A scaling curve is drawn where variants differ in something countable: parameters, epochs of pre-training, or a number among
the study's columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hicmae.pictures import COLOURS, DASHES, MARKERS
from reports.analysis import Analysis, CorpusAnalysis
from reports.cells import Cell
from reports.query import Study, StudyRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_PRETRAININGS = 2
FEWEST_POINTS = 3
_SIZES = ("size", "parameters (M)")  # columns that say in words what the number of parameters says
_LOG_FROM = 8.0  # a range of x wider than this factor has a logarithmic axis


@dataclass(frozen=True)
class Series:
    """Complete cells along one quantity; `lines` maps a name to (x, cell) in rising x."""

    quantity: str
    lines: Mapping[str, list[tuple[float, Cell]]]


def scaling(study: Study, corpus: CorpusAnalysis) -> list[Series]:
    """The series that a corpus' complete cells make: by parameters, by epochs of pre-training, by the study's numbers."""
    cells = [cell for cell in corpus.cells if cell.complete]
    columns = {variant.name: dict(variant.columns) for variant in study.variants}
    quantities: dict[str, dict[str, float]] = {}
    if any("size" in columns[cell.variant] for cell in cells):
        quantities["Parameters (million)"] = {c.variant: _parameters(c) for c in cells}
    epochs = {cell.variant: _epochs(study, cell) for cell in cells}
    if any(cell.used and cell.used[0].config["initial"].get("epoch") for cell in cells):
        quantities["Epochs of pre-training"] = {name: value for name, value in epochs.items() if value is not None}
    taken = {*_SIZES, *(("epochs",) if "Epochs of pre-training" in quantities else ())}
    for key in study.table.get("columns") or ():
        values = {cell.variant: columns[cell.variant].get(key) for cell in cells}
        if key not in taken and all(_is_number(value) for value in values.values()):
            quantities[key] = {name: float(value) for name, value in values.items() if value is not None}
    found = [_series(name, values, cells, columns) for name, values in quantities.items()]
    return [series for series in found if series.lines]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _parameters(cell: Cell) -> float:
    return float(cell.used[0].result.get("parameters") or 0) / 1e6


def _epochs(study: Study, cell: Cell) -> float | None:
    """After how many epochs of pre-training the cell's runs began."""
    run = cell.used[0]
    before = next((earlier for earlier in study.runs if earlier.run_id in run.depends_on), None)
    kept = run.config["initial"].get("epoch")
    if kept or before is None or not before.config:
        return float(kept) if kept else None
    return float(before.config["optim"]["epochs"])


def _series(quantity: str, values: Mapping[str, float], cells: list[Cell], columns: Mapping[str, Mapping[str, Any]]) -> Series:
    """Cells with the same other columns are one line; a line needs points enough to show a course."""
    own = {quantity, *(_SIZES if quantity.startswith("Parameters") else ()), *(("epochs",) if quantity.startswith("Ep") else ())}
    lines: dict[str, list[tuple[float, Cell]]] = {}
    for cell in cells:
        if cell.variant in values:
            others = [str(value) for key, value in columns[cell.variant].items() if key not in own]
            lines.setdefault(", ".join(others), []).append((values[cell.variant], cell))
    rising = {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}
    return Series(quantity, {name: p for name, p in rising.items() if len({x for x, _ in p}) >= FEWEST_POINTS})


def draw_scaling(corpus: CorpusAnalysis, series: Series) -> Figure:
    """The headline against the quantity, with bootstrap intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.2))
    axes = figure.subplots()
    places = {x for points in series.lines.values() for x, _ in points}
    wide = min(places) > 0 and max(places) / min(places) > _LOG_FROM
    for index, (name, points) in enumerate(series.lines.items()):
        x = np.array([place for place, _ in points]) * ((1 + 0.012 * index) if wide else 1)  # side by side, not hidden
        y = np.array([cell.pooled[corpus.headline] for _, cell in points])
        bounds = [corpus.intervals.get(cell.variant) for _, cell in points]
        low, high = (np.array([getattr(b, side) if b else np.nan for b in bounds]) for side in ("low", "high"))
        look: dict[str, Any] = {"color": COLOURS[(index + 1) % 8], "linestyle": DASHES[index % 4], "marker": MARKERS[index % 8]}
        axes.plot(x, y, label=name or None, **look)
        axes.vlines(x, low, high, color=look["color"], linewidth=1, alpha=0.7)
    if wide:
        axes.set_xscale("log")
        axes.set_xticks(sorted(places), [f"{place:g}" for place in sorted(places)], minor=False)
        axes.minorticks_off()
    axes.set_xlabel(series.quantity)
    axes.set_ylabel(corpus.headline)
    axes.grid()
    if any(series.lines):
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def pretrainings(analysis: Analysis, runs_root: Path) -> list[tuple[StudyRun, Path]]:
    """Finished pre-trainings that drew a reconstruction, with its file."""
    runs = [run for run in analysis.study.runs if run.stage == "pretrain" and not run.problem]
    found = [(run, sorted((runs_root / run.run_id / "pictures").glob("reconstruction*.png"))) for run in runs]
    return [(run, files[0]) for run, files in found if files]


def draw_reconstructions(drawn: list[tuple[StudyRun, Path]]) -> tuple[Figure, list[str]]:
    """The first reconstruction of each pre-training below each other; also what could not be read."""
    from matplotlib.figure import Figure

    pictures: list[tuple[str, NDArray[Any]]] = []
    unreadable = []
    for run, file in drawn[:SHOWN_PRETRAININGS]:
        pixels = _read(file)
        if pixels is None:
            unreadable.append(f"{run.run_id}/pictures/{file.name}")
            continue
        names = ", ".join(run.variants[:3]) + (f" and {len(run.variants) - 3} more" if len(run.variants) > 3 else "")
        pictures.append((names, pixels))
    heights = [pixels.shape[0] / pixels.shape[1] for _, pixels in pictures] or [0.2]
    figure = Figure(figsize=(6.0, sum(6.0 * height + 0.25 for height in heights)))
    panes = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes in panes:
        axes.set_axis_off()
    for axes, (name, pixels) in zip(panes, pictures, strict=False):
        axes.imshow(pixels, interpolation="none")
        axes.set_title(name, loc="left")
    return figure, unreadable


def _read(file: Path) -> NDArray[Any] | None:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError):  # PIL calls a broken PNG a SyntaxError
        return None
