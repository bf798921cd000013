r"""Numbers for a paper's text: a `\newcommand` for each, and a listing for people (macro, value, what it is, cell).

    \input{ablation_hierarchical/ablation_hierarchical-numbers.tex}
    ... reaches \AblationHierarchicalMafwFullUAR{} \% (over folds \AblationHierarchicalMafwFullUARMean).

A name is study, corpus, variant and metric in letters alone, digits spelled out, and a word for the kind of number. Where two
would be the same, each ends in X and six letters that follow from its own cell, whatever else the study has.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from reports import trials
from reports.analysis import Analysis, CorpusAnalysis
from reports.cells import Cell
from reports.latex import comment, escape
from reports.stats import Interval
from reports.tables import Table, cell_key

_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_NOTHING = "--"  # stands for a number that is not there yet, so that the text compiles all the same
_LETTERS = 6


@dataclass(frozen=True)
class Number:
    """A number of a cell as text; `kind` ends the macro's name."""

    cell: str
    metric: str
    kind: str
    value: str
    meaning: str


def macros_of(analysis: Analysis, tables: Sequence[Table]) -> dict[str, dict[str, Number]]:
    """table -> macro -> number, for every row that a page shows; names differ in the whole study."""
    corpora = {corpus.corpus: corpus for corpus in analysis.corpora}
    found = {
        table.name: [
            (_name(analysis.study.name, block.corpus, row.variant, number.metric, number.kind), number)
            for block in table.blocks
            for row in block.shown
            for number in _numbers(analysis, corpora[block.corpus], corpora[block.corpus].cell(row.variant))
        ]
        for table in tables
    }
    counts = Counter(name for named in found.values() for name, _ in named)
    return {
        table: {(name if counts[name] == 1 else name + _own_letters(number)): number for name, number in named}
        for table, named in found.items()
    }


def _numbers(analysis: Analysis, corpus: CorpusAnalysis, cell: Cell) -> Iterator[Number]:
    """All numbers of a cell. An incomplete one has the same, without values: a text compiles before its study is done."""
    key = cell_key(analysis.study.name, corpus.corpus, cell.variant)
    for metric in corpus.metrics:
        pooled = f"{cell.pooled[metric]:.2f}" if cell.complete else trials.progress(analysis.study, cell)
        yield Number(key, metric, "", pooled, f"{metric}, all folds' samples together")
        if corpus.folds > 1:
            values = list(cell.folds[metric].values()) if cell.complete else []
            yield Number(key, metric, "Mean", _text(float(np.mean(values)) if values else None), f"{metric}, mean over folds")
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
            yield Number(key, metric, "Sd", _text(deviation), f"{metric}, standard deviation over folds")
    if corpus.metrics:
        interval = corpus.intervals.get(cell.variant)
        yield from _bounds(key, corpus.headline, "", interval, "95 % interval of the pooled value")
        yield from _difference(analysis, corpus, cell, key)
    for kind, count in (("Samples", cell.samples), ("Folds", cell.fold_count), ("Seeds", len(cell.seeds))):
        yield Number(key, "", kind, str(count) if cell.complete else _NOTHING, kind.lower())


def _difference(analysis: Analysis, corpus: CorpusAnalysis, cell: Cell, key: str) -> Iterator[Number]:
    """To the baseline, as the table has it: over folds, or on the one test list."""
    baseline = str(analysis.study.table.get("baseline") or "")
    if not baseline or cell.variant == baseline:
        return
    comparison = corpus.comparisons.get(cell.variant)
    over_folds = corpus.folds > 1
    shown = None
    if comparison is not None:
        found = comparison.difference
        shown = Interval(found.mean, found.low, found.high) if over_folds else comparison.pooled
    where = "over folds" if over_folds else "on the test list"
    meaning = f"{corpus.headline}, difference to {baseline!r} {where}"
    yield Number(key, corpus.headline, "Diff", _text(shown.estimate if shown else None, "+"), meaning)
    yield from _bounds(key, corpus.headline, "Diff", shown, f"95 % interval of the difference to {baseline!r}", "+")


def _bounds(key: str, metric: str, kind: str, found: Interval | None, meaning: str, sign: str = "") -> Iterator[Number]:
    for side, value in (("Low", found.low if found else None), ("High", found.high if found else None)):
        yield Number(
            key,
            metric,
            kind + side,
            _text(value, sign),
            f"{metric}, {'lower' if side == 'Low' else 'upper'} end of the {meaning}",
        )


def _text(value: float | None, sign: str = "") -> str:
    return _NOTHING if value is None or not math.isfinite(value) else f"{value:{sign}.2f}"


def _name(*parts: str) -> str:
    spelled = re.sub(r"[0-9]", lambda digit: f" {_DIGITS[int(digit[0])]} ", " ".join(parts))
    return "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z]+", spelled))


def _own_letters(number: Number) -> str:
    digest = hashlib.sha256(f"{number.cell}\0{number.metric}\0{number.kind}".encode()).digest()
    return "X" + "".join(chr(ord("a") + byte % 26) for byte in digest[:_LETTERS])


def to_tex(table: str, macros: dict[str, Number]) -> str:
    r"""The file for `\input`: numbers with a sign in math, so that minus is a minus."""
    lines = [
        f"% Numbers of {comment(table)}, written by `hicmae report`; do not edit. What is what: {comment(table)}-numbers.txt"
    ]
    return "\n".join([*lines, *(rf"\newcommand{{\{name}}}{{{_tex(number.value)}}}" for name, number in macros.items()), ""])


def _tex(value: str) -> str:
    if value == _NOTHING:
        return value
    return f"${value}$" if value[0] in "+-" else escape(value)


def listing(macros: dict[str, Number]) -> str:
    """One line for each macro: its name, its value, what it is, and the cell whose runs provenance.json names."""
    rows = [("macro", "value", "what", "cell"), *((f"\\{name}", n.value, n.meaning, n.cell) for name, n in macros.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "".join("  ".join([*(t.ljust(w) for t, w in zip(row, widths, strict=False)), row[3]]) + "\n" for row in rows)
