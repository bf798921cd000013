"""The sentences below a table: what its numbers are, how they were tested, and what they may not be taken for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reports import skipped, stats, trials
from reports.analysis import ROPE_POINTS, Analysis, CorpusAnalysis
from reports.corpora import words
from reports.paper import STATUS_MARKS, STATUS_WORDS
from reports.shared import shared_pretraining

EPOCHS = {
    "last": "last epoch",
    "oracle": "best epoch on the test samples, an oracle",
    "validation": "epoch chosen on a validation part",
    "inner": "last epoch",
}
CAPTIONS = {
    "spread": "Over folds: mean and standard deviation.",
    "interval": "95 % interval: bootstrap of {units} on the pooled samples.",
    "pooled_difference": "Pooled difference: with the interval of a paired bootstrap of {units}.",
    "mcnemar": "McNemar: exact test on the pooled test list (first seed), not corrected for the number of rows.",
    "wilcoxon": "Wilcoxon: signed-rank test over folds, exact; with k folds p cannot fall below 2^(1-k), so it is never starred.",
    "equivalence": f"P(as paper): posterior probability that own and published value differ by less than {ROPE_POINTS:g} point.",
}


def notes(analysis: Analysis, group: list[CorpusAnalysis], chosen: Sequence[str]) -> list[str]:
    """The sentences of the caption: what the numbers are, and what they may not be taken for."""
    study = analysis.study
    rule = EPOCHS.get(study.selection, study.selection)
    lines = [f"Metrics over all folds' {'validation' if study.selection == 'inner' else 'test'} samples together ({rule})."]
    if any(not corpus.verdict and len(corpus.cells) > 1 for corpus in group):
        lines.append("Bold is the best, underlined the second.")
    if any(not cell.complete for corpus in group for cell in corpus.cells):
        lines.append("A cell such as 3/5 is incomplete.")
    lines += [note for corpus in group for note in trials.notes(study, corpus.cells)]
    lines += skipped.notes(study, [cell for corpus in group for cell in corpus.cells])
    lines += [CAPTIONS[extra].format(units=_units(group)) for extra in chosen if extra in CAPTIONS]
    if "baseline" in chosen:
        lines += _baseline_notes(str(study.table.get("baseline")), group)
    if "gpu_hours" in chosen:
        lines.append(shared_pretraining(study, [cell for corpus in group for cell in corpus.cells]).sentence)
    if "paper" in chosen:
        lines += _paper_notes(group)
    if study.smoke:
        lines.append("Smoke size on generated clips: shows that the program works, not what the method reaches.")
    return lines


def _units(group: list[CorpusAnalysis]) -> str:
    """What a bootstrap draws, by corpus: `whole actors (CREMA-D, RAVDESS), single clips (MAFW)`."""
    titles: dict[str, list[str]] = {}
    for corpus in group:
        titles.setdefault(words(corpus.corpus).drawn, []).append(corpus.title)
    if len(titles) == 1:
        return next(iter(titles))
    return ", ".join(f"{unit} ({', '.join(names)})" for unit, names in titles.items())


def _paper_notes(group: list[CorpusAnalysis]) -> list[str]:
    """How sure the published values are: what each mark says, and what the absence of one does."""
    found = {value.status for corpus in group for value in corpus.paper.values()}
    said = [f"{STATUS_MARKS[status] or 'without a mark'} {STATUS_WORDS[status]}" for status in STATUS_MARKS if status in found]
    means = dict.fromkeys(metric for corpus in group for (_, metric), value in corpus.paper.items() if value.is_mean)
    notes = [f"Paper values: {'; '.join(said)}."] if said else []
    return [
        *notes,
        *([f"Paper values of {' and '.join(means)} are means of the published ones of each target."] if means else []),
    ]


def _baseline_notes(baseline: str, group: list[CorpusAnalysis]) -> list[str]:
    """How differences to the baseline were tested, and what the star says."""
    compared = [corpus for corpus in group if corpus.comparisons]
    ways = []
    if any(corpus.folds > 1 for corpus in compared):
        ways.append("over folds the mean with the 95 % interval of the corrected resampled t test")
    if any(corpus.folds == 1 for corpus in compared):
        ways.append("on one test list the difference with its bootstrap interval, tested with the exact McNemar test")
    lines = [f"To baseline: difference to {baseline!r}, {'; '.join(ways)}; * has p < {stats.ALPHA:g} after Holm's correction."]
    differences = [c.difference for corpus in compared for c in corpus.comparisons.values()]
    if any(found.folds > 1 and math.isnan(found.low) for found in differences):
        lines.append("A difference without interval is the same in every fold, which leaves nothing to test it with.")
    if any(corpus.verdict for corpus in group):
        lines.append("Where no difference to the baseline can be shown, rows are not ranked and the line below them says so.")
    return lines
