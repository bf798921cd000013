"""The ablation table: its numbers against the files worked out by other means, its marks, its columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, recall_score
from study_records import CorpusOnDisk, StudyOnDisk, VariantOnDisk, factorial_variants

from experiments.experiment import find
from hicmae.errors import UsageError
from hicmae.record import write_json
from reports import latex, stats
from reports.analysis import Analysis, analyse
from reports.cells import Cell
from reports.corpora import words
from reports.findings import findings
from reports.paper import matching, published
from reports.provenance import provenance_of
from reports.query import StudyRun, load_study
from reports.render import to_csv, to_html, to_json
from reports.tables import EXTRAS, Field, Table, ranks, tables_of

NAME = "ablation_hierarchical_smoke"
PUBLISHED = Path(__file__).resolve().parents[2] / "reports" / "paper_reference.csv"


def analysed(study: StudyOnDisk, resamples: int = 200) -> Analysis:
    return analyse(load_study(study.root, study.name), np.random.default_rng(0), resamples)


def only_table(analysis: Analysis, extras: list[str] | None = None) -> Table:
    tables = tables_of(analysis, extras)
    assert len(tables) == 1
    return tables[0]


def field_of(table: Table, variant: str, key: str) -> Field:
    place = [column.key for column in table.columns].index(key)
    return next(row for block in table.blocks for row in block.rows if row.variant == variant).fields[place]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyOnDisk:
    root = tmp_path_factory.mktemp("factorial") / "runs"
    return StudyOnDisk(root, NAME, factorial_variants(), {"synthetic": CorpusOnDisk()}, table={"baseline": "none"}).write()


@pytest.fixture(scope="module")
def analysis(study: StudyOnDisk) -> Analysis:
    return analysed(study)


def predictions(study: StudyOnDisk, variant: str, corpus: str = "synthetic", folds: int = 5, seed: int = 0) -> list[pd.DataFrame]:
    """The selected rows of each fold's file, read by pandas."""
    frames = [pd.read_parquet(study.path(variant, corpus, fold, seed) / "predictions.parquet") for fold in range(1, folds + 1)]
    return [frame[frame["selection"] == "last"] for frame in frames]


def test_one_row_per_variant_with_a_check_mark_per_module(study: StudyOnDisk, analysis: Analysis) -> None:
    table = only_table(analysis)
    assert [row.variant for row in table.blocks[0].rows] == [variant.name for variant in study.variants]
    for variant in study.variants:
        shown = {name: field_of(table, variant.name, f"variant.{name}").value for name in ("skips", "contrast", "fusion")}
        assert shown == variant.columns


@pytest.mark.parametrize("variant", ["none", "skips + contrast + fusion"])
def test_headline_is_computed_on_all_folds_together_as_sklearn_does(study: StudyOnDisk, analysis: Analysis, variant: str) -> None:
    table, frames = only_table(analysis), predictions(study, variant)
    together = pd.concat(frames)
    uar = 100 * recall_score(together["label"], together["prediction"], average="macro")
    assert field_of(table, variant, "pooled.UAR").value == pytest.approx(uar)
    assert field_of(table, variant, "pooled.WAR").value == pytest.approx(
        100 * accuracy_score(together["label"], together["prediction"])
    )
    per_fold = [100 * recall_score(frame["label"], frame["prediction"], average="macro") for frame in frames]
    spread = field_of(table, variant, "spread.UAR")
    assert (spread.value, spread.spread) == pytest.approx((np.mean(per_fold), np.std(per_fold, ddof=1)))


def test_difference_to_the_baseline_is_the_corrected_t_of_the_folds(study: StudyOnDisk, analysis: Analysis) -> None:
    ours, theirs = (
        [100 * recall_score(f["label"], f["prediction"], average="macro") for f in predictions(study, name)]
        for name in ("fusion", "none")
    )
    expected = stats.corrected_t(np.subtract(ours, theirs), 40 / 160)
    shown = field_of(only_table(analysis), "fusion", "baseline.UAR")
    assert (shown.value, shown.low, shown.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_baseline_row_has_no_difference_to_itself(analysis: Analysis) -> None:
    assert field_of(only_table(analysis), "none", "baseline.UAR").value is None


def test_effects_of_the_modules_are_there_and_nearest_to_their_truth(analysis: Analysis) -> None:
    effects = {effect.factors: effect.difference for effect in analysis.corpora[0].effects}
    assert len(effects) == 7
    for factor, gain in (("skips", 10), ("contrast", 5), ("fusion", 15)):
        assert effects[factor,].mean == pytest.approx(gain, abs=6)


def test_same_records_and_generator_give_the_same_table(study: StudyOnDisk) -> None:
    assert tables_of(analysed(study)) == tables_of(analysed(study))


def test_incomplete_cell_shows_its_progress_and_is_never_best(tmp_path: Path) -> None:
    best = "skips + contrast + fusion"
    study = StudyOnDisk(
        tmp_path / "runs",
        NAME,
        factorial_variants(),
        {"synthetic": CorpusOnDisk()},
        skip=lambda v, c, fold, s: v == best and fold > 3,
    ).write()
    table = only_table(analysed(study))
    shown = field_of(table, best, "pooled.UAR")
    assert (shown.text, shown.value, shown.rank) == ("3/5", None, "")
    assert field_of(table, best, "spread.UAR").value is None
    ranked = [row.variant for row in table.blocks[0].rows if any(field.rank == "best" for field in row.fields)]
    assert ranked and best not in ranked
    assert not table.complete


def test_seeds_are_averaged_inside_folds_and_pooled_per_seed(tmp_path: Path) -> None:
    variants = [VariantOnDisk("a", 0.6), VariantOnDisk("b", 0.7, delta={"head.feature_fusion": "last"})]
    study = StudyOnDisk(tmp_path / "runs", "seeds_smoke", variants, {"synthetic": CorpusOnDisk(folds=3)}, seeds=(0, 1)).write()
    table = only_table(analysed(study), ["spread", "folds", "seeds", "samples"])
    per_seed = [pd.concat(predictions(study, "a", folds=3, seed=seed)) for seed in (0, 1)]
    wars = [100 * (frame["label"] == frame["prediction"]).mean() for frame in per_seed]
    assert field_of(table, "a", "pooled.WAR").value == pytest.approx(np.mean(wars))
    assert field_of(table, "a", "folds").value == 3
    assert field_of(table, "a", "seeds").value == 2
    assert field_of(table, "a", "samples").value == 120


@pytest.mark.parametrize("baseline", ["a", ""])
def test_where_nothing_can_be_shown_the_table_says_so_instead_of_ranking(tmp_path: Path, baseline: str) -> None:
    """Five folds without a difference beyond their spread: no row is bold or underlined, in no format, and a line says why."""
    variants = [VariantOnDisk("a", 0.6), VariantOnDisk("b", 0.6, delta={"head.feature_fusion": "last"})]
    study = StudyOnDisk(
        tmp_path / "runs", "even_smoke", variants, {"synthetic": CorpusOnDisk()}, table={"baseline": baseline}
    ).write()
    analysis = analysed(study)
    table = only_table(analysis)
    said = "not resolvable at k=5, 1 seed"
    assert all(field.rank == "" and field.mark == "" for row in table.blocks[0].rows for field in row.fields)
    assert not any("Bold" in note for note in table.notes)
    assert said in json.loads(to_json(table))["blocks"][0]["verdict"]
    assert said in to_html(table, "even") and 'class="number best"' not in to_html(table, "even")
    assert latex.escape(said) in latex.fragment(table, "even") and r"\bfseries" not in latex.fragment(table, "even")
    assert any(said in line for line in findings(analysis))
    assert analysis.corpora[0].cell("a").pooled != analysis.corpora[0].cell("b").pooled  # there is a largest number


def test_where_a_difference_is_shown_rows_are_ranked(analysis: Analysis) -> None:
    table = only_table(analysis)
    assert table.blocks[0].verdict == ""
    assert field_of(table, "skips + contrast + fusion", "pooled.UAR").rank == "best"
    assert any("Bold is the best" in note for note in table.notes)


def test_without_a_baseline_the_best_must_differ_from_another_after_correction_for_all_pairs(tmp_path: Path) -> None:
    variants = [VariantOnDisk("a", 0.3), VariantOnDisk("b", 0.9, delta={"head.feature_fusion": "last"})]
    study = StudyOnDisk(tmp_path / "runs", "apart", variants, {"list:x": CorpusOnDisk()}).write()
    corpus = analysed(study).corpora[0]
    assert corpus.verdict == "" and not corpus.comparisons


def test_two_methods_on_one_test_list_are_compared_by_the_exact_mcnemar_test(tmp_path: Path) -> None:
    variants = [VariantOnDisk("a", 0.5), VariantOnDisk("b", 0.95, delta={"head.feature_fusion": "last"})]
    corpora = {"list:x": CorpusOnDisk(folds=1, samples_per_fold=60, groups_per_fold=10)}
    study = StudyOnDisk(tmp_path / "runs", "one_list", variants, corpora, table={"baseline": "a"}).write()
    analysis = analysed(study)
    (frame_a,), (frame_b,) = (predictions(study, name, "list:x", folds=1) for name in "ab")
    right_a, right_b = ((frame["label"] == frame["prediction"]).to_numpy() for frame in (frame_a, frame_b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = binomtest(only_b, only_a + only_b).pvalue
    table = only_table(analysis, ["baseline", "mcnemar", "wilcoxon"])
    assert field_of(table, "b", "mcnemar").value == pytest.approx(p)
    assert p < 0.05 and field_of(table, "b", "baseline.UAR").mark == "*"
    assert field_of(table, "b", "wilcoxon").value is None
    assert any("exact McNemar test" in note for note in table.notes)
    assert any(f"{only_b} samples right in it alone" in line for line in findings(analysis))


def test_every_promised_column_can_be_asked_for(tmp_path: Path) -> None:
    mafw = CorpusOnDisk(classes=11, samples_per_fold=110, n_train=440)
    variants = [VariantOnDisk("all", 0.6), VariantOnDisk("mask", 0.5, delta={"objective.video_mask_ratio": 0.8})]
    study = StudyOnDisk(tmp_path / "runs", "all", variants, {"mafw": mafw}, size="base", table={"baseline": "all"}).write()
    analysis = analysed(study)
    table = only_table(analysis, list(EXTRAS))
    given = {column.key.partition(".")[0]: field_of(table, "mask", column.key) for column in table.columns}
    assert set(EXTRAS) <= set(given)
    ours = {column.key.partition(".")[0]: field_of(table, "all", column.key) for column in table.columns}
    for extra in EXTRAS:
        shown = ours[extra] if extra in ("paper", "paper_difference", "equivalence") else given[extra]
        assert shown.value is not None or shown.text, extra
    assert given["interval"].low < given["interval"].value < given["interval"].high
    pooled = [field_of(table, name, "pooled.UAR").value for name in ("mask", "all")]
    assert given["pooled_difference"].value == pytest.approx(pooled[0] - pooled[1])
    assert given["wilcoxon"].value >= 0.0625
    assert any("P(as paper)" in note for note in table.notes) and any("Wilcoxon" in note for note in table.notes)
    for text in (to_csv(table), to_json(table), to_html(table, "all"), latex.fragment(table, "all")):
        assert text


def write_search(root: Path, trials: int) -> StudyOnDisk:
    """A search as `hicmae search run` records it: every tenth trial pruned, trial 0 the recipe."""
    variants = [
        VariantOnDisk(f"trial {i:04d}", 0.3 + 0.5 * (i * 7 % trials) / trials, delta={"augment.label_smoothing": i / 1000})
        for i in range(trials)
    ]
    pruned = {variant.name for variant in variants[5::10]}
    corpora = {"list:x": CorpusOnDisk(folds=1, samples_per_fold=40)}
    study = StudyOnDisk(root, "search_smoke", variants, corpora, skip=lambda v, c, fold, s: v in pruned).write()
    values = json.loads(study.study_file.read_text())
    states = [("pruned", None) if v.name in pruned else ("done", 100 * v.accuracy) for v in variants]
    places = {v.name: place for place, v in enumerate(_best_first(variants), start=1)}
    rows = [
        {"name": v.name, "state": state, "value": value, "place": places.get(v.name)}
        for v, (state, value) in zip(variants, states, strict=True)
    ]
    values["search"] = {"direction": "maximize", "objective": "validation UAR", "recipe": "trial 0000", "trials": rows}
    study.study_file.write_text(json.dumps(values))
    return study


def _best_first(variants: Sequence[VariantOnDisk]) -> list[VariantOnDisk]:
    return sorted((v for v in variants if int(v.name[-4:]) % 10 != 5), key=lambda variant: -variant.accuracy)


def test_table_of_a_search_is_short_and_its_files_are_whole(tmp_path: Path) -> None:
    study = write_search(tmp_path / "runs", 60)
    analysis = analysed(study, 20)
    table = only_table(analysis)
    rows = table.blocks[0].shown
    best = _best_first(study.variants)[:20]
    assert [row.variant for row in rows] == [*(v.name for v in best), "trial 0000"]
    assert any(note.startswith("21 of 60 trials shown, the best and the recipe (trial 0000)") for note in table.notes)
    assert to_html(table, "search").count("<tr>") == 1 + 21
    assert len(to_csv(table).splitlines()) == 1 + 60 and len(json.loads(to_json(table))["blocks"][0]["rows"]) == 60
    assert field_of(table, "trial 0005", "pooled.UAR").text == "pruned"
    assert not analysis.problems  # a pruned trial's missing run is as it should be
    said = findings(analysis)
    assert any("which was chosen, not which is better" in note for note in table.notes)
    assert any(best[0].name in line and "was chosen" in line for line in said) and len(said) < 5


def test_corpora_with_other_metrics_get_a_table_of_their_own(tmp_path: Path) -> None:
    corpora = {
        "list:a": CorpusOnDisk(folds=2),
        "list:b": CorpusOnDisk(folds=2, metrics=("WF1",)),
        "list:c": CorpusOnDisk(folds=3),
        "list:d": CorpusOnDisk(folds=2, targets=("arousal", "valence"), metrics=("CCC", "MAE")),
    }
    variants = [VariantOnDisk("a", 0.6), VariantOnDisk("b", 0.7, delta={"head.feature_fusion": "last"})]
    study = StudyOnDisk(tmp_path / "runs", "mixed", variants, corpora).write()
    tables = tables_of(analysed(study))
    assert [[block.corpus for block in table.blocks] for table in tables] == [["list:a", "list:c"], ["list:b"], ["list:d"]]
    assert len({table.name for table in tables}) == 3


def test_lower_is_better_for_errors(tmp_path: Path) -> None:
    variants = [VariantOnDisk("good", 0.9), VariantOnDisk("bad", 0.2, delta={"head.feature_fusion": "last"})]
    corpora = {"list:d": CorpusOnDisk(folds=2, targets=("arousal", "valence"), metrics=("MAE", "CCC"))}
    study = StudyOnDisk(tmp_path / "runs", "errors", variants, corpora).write()
    corpus = analysed(study).corpora[0]
    assert ranks(corpus, "MAE") == {"good": "best", "bad": "second"}
    assert ranks(corpus, "CCC") == {"good": "best", "bad": "second"}


class _FixedCell(Cell):
    """A complete cell with a given value."""

    def __init__(self, variant: str, value: float) -> None:
        run = StudyRun("id", "finetune", (variant,), "x", 1, 0)
        super().__init__(variant, "x", (run,), (run,), ("UAR",))
        self.__dict__["pooled"] = {"UAR": value}


@given(st.lists(st.sampled_from([50.0, 50.004, 61.111, 61.1112, 70.0]), min_size=1, max_size=8))
def test_ranks_use_unrounded_values_and_ties_share(values: list[float]) -> None:
    class Corpus:
        cells = tuple(_FixedCell(str(index), value) for index, value in enumerate(values))

    found = ranks(Corpus(), "UAR")  # type: ignore[arg-type]
    ordered = sorted(set(values), reverse=True)
    for index, value in enumerate(values):
        wanted = "" if len(values) < 2 else "best" if value == ordered[0] else "second" if value == ordered[1] else ""
        assert found.get(str(index), "") == wanted


def test_paper_values_and_their_status_stand_beside_own_ones(tmp_path: Path) -> None:
    mafw = CorpusOnDisk(classes=11, samples_per_fold=110, n_train=440)
    variants = [
        VariantOnDisk("none", 0.5, delta={"decoder.skip_connections": False}, paper="none of the three modules"),
        VariantOnDisk("all", 0.6),
    ]
    study = StudyOnDisk(tmp_path / "runs", "ablation", variants, {"mafw": mafw}, size="base", table={"baseline": "none"}).write()
    table = only_table(analysed(study), ["paper", "paper_difference", "equivalence"])
    assert field_of(table, "none", "paper.UAR").value is None  # only WAR is known
    assert field_of(table, "none", "paper.WAR") == Field(54.79, mark="a", status="single")
    assert field_of(table, "all", "paper.WAR") == Field(56.17, status="two-sources")
    for metric, theirs in (("UAR", 42.65), ("WAR", 56.17)):
        own = field_of(table, "all", f"pooled.{metric}").value
        assert field_of(table, "all", f"paper_difference.{metric}").value == pytest.approx(own - theirs)
    assert "Paper values: without a mark found in two sources; a known from one secondary source." in table.notes
    assert {field["status"] for field in json.loads(to_json(table))["blocks"][0]["rows"][0]["fields"]} == {"", "single"}
    assert field_of(table, "all", "paper.UAR").value == 42.65
    own = field_of(table, "all", "pooled.UAR").value
    assert field_of(table, "all", "paper_difference.UAR").value == pytest.approx(own - 42.65)


def test_paper_value_of_a_metric_that_is_not_the_headline_has_its_column(tmp_path: Path) -> None:
    """MAFW's headline is UAR; of the ablations the paper prints WAR."""
    paper = {f"loss weight {weight}": weight for weight in ("0", "0.1")}
    variants = [
        VariantOnDisk(weight, 0.5, delta={"objective.contrastive_weight": float(weight)}, paper=name)
        for name, weight in paper.items()
    ]
    mafw = CorpusOnDisk(classes=11, samples_per_fold=110, n_train=440)
    study = StudyOnDisk(tmp_path / "runs", "weights", variants, {"mafw": mafw}, size="base").write()
    table = only_table(analysed(study))
    assert [field_of(table, weight, "paper.WAR").value for weight in paper.values()] == [55.62, 47.87]
    keys = [column.key for column in table.columns]
    assert "paper_difference.WAR" in keys and "paper.UAR" not in keys


def test_published_values_meet_the_names_of_corpora_and_metrics() -> None:
    of_arousal = published("AVCAffe (arousal)", "base", "AV", "WF1")
    assert of_arousal is not None and (of_arousal.value, of_arousal.status) == (43.18, "single")
    of_valence = published("AVCAffe (valence)", "base", "AV", "WF1")
    assert of_valence is not None and (of_valence.value, of_valence.status) == (44.20, "two-sources")
    mean = published("Werewolf-XL", "base", "AV", "PCC")
    assert mean is not None and mean.value == pytest.approx((33.74 + 69.23 + 40.66) / 3)
    assert mean.is_mean and mean.status == "single" and "mean of PCC arousal, PCC valence, PCC dominance" in mean.source
    alone = published("Werewolf-XL", "base", "AV", "PCC valence")
    assert alone is not None and alone.value == 69.23
    assert published("AVCAffe", "base", "AV", "WF1 dominance") is None
    assert published("MAFW (single)", "base", "AV", "UAR") is None


def test_which_published_rows_the_studies_reach() -> None:
    """All of HiCMAE by main_results and the ablations; the file has also its authors' second run and other methods."""
    found = []
    for name in ("main_results", "ablation_hierarchical", "ablation_loss_weight"):
        study = find(name)
        for variant, corpus in product(study.variants, study.corpora):
            size, modality = (variant.name.split() if name == "main_results" else ("base", "AV"))[:2]
            described = words(corpus)
            for metric in described.metrics:
                found += matching(described.title, size, modality, metric, variant.paper)
    left = [row for row in csv.DictReader(PUBLISHED.open(newline="")) if row not in found]
    assert {row["variant"] for row in left} == {"official rerun", "reported"}
    assert {row["scale"] for row in left if row["variant"] == "reported"} == {
        *("MAE-DFER", "T-MEP", "VQ-MAE-AV", "WavLM-Plus", "HuBERT-CH"),
    }


def test_bootstrap_notes_name_what_is_drawn_of_each_corpus(tmp_path: Path) -> None:
    corpora = {"crema_d": CorpusOnDisk(classes=6, folds=2), "mafw": CorpusOnDisk(classes=11, folds=2)}
    study = StudyOnDisk(tmp_path / "runs", "drawn", [VariantOnDisk("a", 0.6)], corpora).write()
    table = only_table(analysed(study, 20), ["interval", "pooled_difference"])
    drawn = "whole actors (CREMA-D), single clips (MAFW)"
    assert f"95 % interval: bootstrap of {drawn} on the pooled samples." in table.notes
    assert f"Pooled difference: with the interval of a paired bootstrap of {drawn}." in table.notes
    one = StudyOnDisk(tmp_path / "runs", "one", [VariantOnDisk("a", 0.6)], {"crema_d": corpora["crema_d"]}).write()
    assert any("bootstrap of whole actors on" in note for note in only_table(analysed(one, 20), ["interval"]).notes)


def test_study_of_oracle_epochs_says_oracle_in_its_column(tmp_path: Path) -> None:
    study = StudyOnDisk(
        tmp_path / "runs", "best", [VariantOnDisk("a", 0.6)], {"list:x": CorpusOnDisk(folds=2)}, table={"selection": "oracle"}
    ).write()
    table = only_table(analysed(study, 20), ["selection"])
    assert field_of(table, "a", "selection").text == "oracle"
    assert "an oracle" in table.notes[0]


def test_skipped_clips_are_said_beside_the_table_and_in_the_provenance(tmp_path: Path) -> None:
    """Of fine-tuning by row, each clip once though two folds left it out; of pre-training for every row that began from it."""
    variants = [VariantOnDisk("a", 0.6), VariantOnDisk("b", 0.7, delta={"head.feature_fusion": "last"})]
    study = StudyOnDisk(tmp_path / "runs", "skips", variants, {"crema_d": CorpusOnDisk(classes=6, folds=2)}).write()
    assert not any("left out" in note for note in only_table(analysed(study, 20)).notes)

    def skip(path: Path, *clips: str) -> None:
        write_json(path / "result.json", {**json.loads((path / "result.json").read_text()), "skipped_clips": list(clips)})

    skip(study.path("b", "crema_d", 1), "one.mp4: no frames", "two.mp4: no sound")
    skip(study.path("b", "crema_d", 2), "one.mp4: no frames", "three.mp4: no sound")
    (before,) = [run for run in study.runs.values() if run["stage"] == "pretrain"]
    skip(study.root / before["run_id"], "four.mp4: no sound")
    analysis = analysed(study, 20)
    table, title = only_table(analysis), words(before["corpus"]).title
    assert "3 clips of CREMA-D could not be used and were left out (b)." in table.notes
    assert f"1 clip of {title} could not be used and was left out (every row)." in table.notes
    assert "left out (b)" in to_json(table) and "left out (b)" in latex.caption(table)
    cells = provenance_of(analysis, {})["cells"]
    assert cells["skips/crema_d/a"]["skipped_clips"] == {before["corpus"]: ["four.mp4: no sound"]}
    assert len(cells["skips/crema_d/b"]["skipped_clips"]["crema_d"]) == 3
    assert [run["skipped_clips"] for run in cells["skips/crema_d/b"]["runs"]] == [2, 2]


def test_a_variant_that_changes_more_than_size_and_modality_has_no_published_value(tmp_path: Path) -> None:
    variants = [
        VariantOnDisk("mask", 0.5, delta={"objective.video_mask_ratio": 0.8}),
        VariantOnDisk("audio", 0.5, delta={"head.modality": "A"}),
    ]
    study = StudyOnDisk(tmp_path / "runs", "masks", variants, {"crema_d": CorpusOnDisk(classes=6, folds=2)}, size="base").write()
    table = only_table(analysed(study), ["paper"])
    assert field_of(table, "mask", "paper.UAR").value is None
    assert field_of(table, "audio", "paper.UAR").value == 71.11


def test_unknown_column_names_the_valid_ones(analysis: Analysis) -> None:
    with pytest.raises(UsageError, match="parameters"):
        tables_of(analysis, ["params"])


def test_tasks_are_averaged_before_they_count(tmp_path: Path) -> None:
    study = StudyOnDisk(
        tmp_path / "runs", "tasks", [VariantOnDisk("a", 0.6)], {"list:t": CorpusOnDisk(folds=2, tasks=True, metrics=("WF1",))}
    ).write()
    table = only_table(analysed(study), ["samples"])
    assert field_of(table, "a", "samples").value == 40  # 2 folds of 40 clips, two clips a task
    frames = pd.concat(predictions(study, "a", "list:t", folds=2))
    merged = frames.groupby("task_id").agg({"label": "first", **{f"score_{k}": "mean" for k in range(4)}})
    answers = merged[[f"score_{k}" for k in range(4)]].to_numpy().argmax(1)
    from sklearn.metrics import f1_score

    assert field_of(table, "a", "pooled.WF1").value == pytest.approx(100 * f1_score(merged["label"], answers, average="weighted"))


def test_study_file_holds_all_that_the_table_needs(study: StudyOnDisk) -> None:
    assert set(json.loads(study.study_file.read_text())) >= {"experiment", "title", "table", "variants", "runs", "command"}


def test_a_difference_that_is_the_same_in_every_fold_has_no_interval_and_the_caption_says_why(tmp_path: Path) -> None:
    variants = [VariantOnDisk("none", 0.0), VariantOnDisk("all", 1.0, delta={"head.feature_fusion": "last"})]
    study = StudyOnDisk(tmp_path / "runs", "sure", variants, {"synthetic": CorpusOnDisk(folds=2)}, table={"baseline": "none"})
    table = only_table(analysed(study.write(), 20))
    assert field_of(table, "all", "baseline.UAR").value == 100
    assert field_of(table, "all", "baseline.UAR").low is None or np.isnan(field_of(table, "all", "baseline.UAR").low)
    assert any("the same in every fold" in note for note in table.notes)


def test_where_differences_have_intervals_nothing_is_said_of_missing_ones(analysis: Analysis) -> None:
    assert not any("same in every fold" in note for note in only_table(analysis).notes)
