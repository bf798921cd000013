"""The rows of a search of many trials: best first, the first of them shown, all of them in CSV and JSON.

`runs/_studies/<search>.json` has a part "search" with every trial's state and value on the validation part.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from reports.cells import Cell
from reports.query import Study

SHOWN = 20


def trials(study: Study) -> dict[str, Mapping[str, Any]]:
    """Variant name -> trial; empty for a study that is no search."""
    return {str(trial["name"]): trial for trial in study.search.get("trials", ())}


def arranged(study: Study, cells: Sequence[Cell]) -> list[Cell]:
    """Cells of a search by the place that it gave their trials, those without one last; of any other study as they are."""
    known = trials(study)
    if not known:
        return list(cells)
    return sorted(cells, key=lambda cell: known.get(cell.variant, {}).get("place") or math.inf)


def shown(study: Study, cells: Sequence[Cell]) -> set[str]:
    """The variants in the table of a page: of a search the best and the recipe, else all."""
    if not study.search:
        return {cell.variant for cell in cells}
    best = [cell.variant for cell in arranged(study, cells)][:SHOWN]
    return {*best, *(cell.variant for cell in cells if cell.variant == study.search.get("recipe"))}


def progress(study: Study, cell: Cell) -> str:
    """What stands in the place of an incomplete cell's number: `3/5`, or that the trial was given up."""
    return "pruned" if is_pruned(study, cell.variant) else cell.progress


def is_pruned(study: Study, variant: str) -> bool:
    """Whether the search gave the trial up, so that its missing runs are as they should be."""
    return trials(study).get(variant, {}).get("state") == "pruned"


def notes(study: Study, cells: Sequence[Cell]) -> list[str]:
    """What must be said of the table of a search."""
    if not study.search:
        return []
    count, recipe = len(shown(study, cells)), study.search.get("recipe")
    states = Counter(str(trial.get("state")) for trial in trials(study).values())
    ended = ", ".join(f"{number} {state}" for state, number in states.most_common())
    which = "the best" + (f" and the recipe ({recipe})" if recipe else "")
    return [
        f"{count} of {len(cells)} trials shown, {which}; all are in the CSV and JSON files ({ended}).",
        "Trials are judged on the validation part that chose them: the order says which was chosen, not which is better.",
    ]
