"""The style of all pictures of the project, and the picture that both reports and MLflow show: the confusion matrix."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by the colour-blind; always used together with a marker or dash, for grey prints.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "svg.hashsalt": "hicmae",
    "text.parse_math": False,  # names print as themselves
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for all pictures of the project; no window system is needed."""
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context(_STYLE):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands for it
        yield


def confusion_figure(counts: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Rows are the true classes, in percent of their samples; darker is more."""
    from matplotlib.figure import Figure

    side = 1.6 + 0.42 * len(names)
    figure = Figure(figsize=(side + 0.4, side))
    axes = figure.subplots()
    support = counts.sum(1, keepdims=True)
    share = 100 * np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    axes.imshow(share, cmap="Greys", vmin=0, vmax=100)
    for row, column in np.ndindex(*share.shape):
        shade = "white" if share[row, column] > 55 else "black"
        axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{name} ({int(n)})" for name, n in zip(names, support[:, 0], strict=True)])
    axes.set_xlabel("Predicted")
    axes.set_ylabel("True (samples)")
    axes.spines[:].set_visible(False)
    return figure
