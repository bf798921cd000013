"""Studies enumerate runs: what is shared, what depends on what, which fields a delta may name; ids never move by accident."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import experiment, recipes
from experiments.experiment import Experiment, Run, Table, Variant, size_delta, split_delta
from experiments.selection import select
from hicmae.config import FinetuneConfig, PretrainConfig, flatten, run_id
from hicmae.errors import UsageError

GOLDEN = Path(__file__).parents[1] / "golden" / "smoke_studies.json"
CHECKOUT = Path(__file__).parents[2]


def prints(name: str) -> str:
    return f"content of {name}"


def study(*variants: Variant, **fields: Any) -> Experiment:
    """A study at smoke size on the generated corpus."""
    base: dict[str, Any] = {"corpora": ("synthetic",), "folds": (1, 2), "size": "smoke", "pretrain_corpus": "synthetic"}
    return Experiment(name="s", title="t", variants=variants, **{**base, **fields})


def by_stage(runs: list[Run], stage: str) -> list[Run]:
    return [run for run in runs if run.stage == stage]


def test_the_2x2x2_shares_four_pretrainings() -> None:
    runs = experiment.find("ablation_hierarchical").at_smoke_size().runs(prints)
    pretrains, finetunes = by_stage(runs, "pretrain"), by_stage(runs, "finetune")
    folds = {run.fold for run in finetunes}
    assert len(pretrains) == 4
    assert len(finetunes) == 8 * len(folds)
    assert all(len(run.variants) == 2 for run in pretrains)
    assert {name for run in pretrains for name in run.variants} == {run.variants[0] for run in finetunes}


@pytest.mark.parametrize("name", experiment.names())
def test_every_study_enumerates_at_smoke_size(name: str) -> None:
    found = experiment.find(name)
    assert found.name == name
    runs = found.at_smoke_size().runs(prints)
    assert {name for run in runs for name in run.variants} == {variant.name for variant in found.variants}
    assert {run.corpus for run in runs} == {"synthetic"}


def test_smoke_run_ids_stay_what_they_are() -> None:
    assert golden_ids() == json.loads(GOLDEN.read_text()), (
        "a study, a recipe or a default changed, so recorded runs no longer count as done; if that is intended, "
        "renew the file with: python tests/experiments/test_enumeration.py"
    )


def test_variants_that_resolve_alike_are_one_run_with_both_names() -> None:
    runs = study(
        Variant("no contrast", {"objective.contrastive": "none"}), Variant("weight 0", {"objective.contrastive_weight": 0})
    ).runs(prints)
    assert [run.variants for run in runs] == [("no contrast", "weight 0")] * 3


def test_a_finetuning_starts_from_its_own_pretraining() -> None:
    runs = study(Variant("a"), Variant("b", {"decoder.skip_connections": False})).runs(prints)
    configs = {run.run_id: run.config for run in runs}
    for run in by_stage(runs, "finetune"):
        assert isinstance(run.config, FinetuneConfig)
        assert run.depends_on == (run.config.initial.reference,)
        source = configs[run.depends_on[0]]
        assert isinstance(source, PretrainConfig)
        assert source.decoder.skip_connections == ("a" in run.variants)


def test_a_change_of_the_encoder_concerns_both_stages_and_one_of_the_head_does_not() -> None:
    runs = study(
        Variant("a"), Variant("deeper fusion", {"encoder.fusion_depth": 2}), Variant("last", {"head.feature_fusion": "last"})
    )
    pretrains = by_stage(runs.runs(prints), "pretrain")
    assert [run.variants for run in pretrains] == [("a", "last"), ("deeper fusion",)]
    assert all(run.config.encoder.fusion_depth == 2 for run in runs.runs(prints) if "deeper fusion" in run.variants)


def test_a_stage_in_front_of_a_name_restricts_it() -> None:
    runs = study(Variant("long", {"finetune.optim.epochs": 30})).runs(prints)
    assert {run.stage: run.config.optim.epochs for run in runs} == {
        "pretrain": recipes.pretrain("smoke").optim.epochs,
        "finetune": 30,
    }
    runs = study(Variant("long", {"optim.epochs": 30})).runs(prints)
    assert {run.config.optim.epochs for run in runs} == {30}


def test_from_scratch_and_from_a_checkpoint_need_no_pretraining() -> None:
    official = {"initial.source": "official", "initial.reference": "f" * 64}
    runs = study(Variant("scratch", {"initial.source": "scratch"}), Variant("official", official)).runs(prints)
    assert {run.stage for run in runs} == {"finetune"}
    assert all(run.depends_on == () for run in runs)
    assert study(Variant("a"), pretrain_corpus=None).runs(prints) == by_stage(
        study(Variant("a"), pretrain_corpus=None).runs(prints), "finetune"
    )


def test_seeds_finetune_again_and_pretrain_again_only_on_request() -> None:
    once = study(Variant("a"), seeds=(0, 1, 2)).runs(prints)
    assert (len(by_stage(once, "pretrain")), len(by_stage(once, "finetune"))) == (1, 6)
    each = study(Variant("a"), seeds=(0, 1, 2), pretrain_seed=None).runs(prints)
    assert (len(by_stage(each, "pretrain")), len(by_stage(each, "finetune"))) == (3, 6)


def test_the_content_of_a_corpus_is_part_of_every_run_id() -> None:
    one = {run.run_id for run in study(Variant("a")).runs(prints)}
    other = {run.run_id for run in study(Variant("a")).runs(lambda _: "other content")}
    assert not one & other


def test_folds_come_from_the_corpus() -> None:
    runs = by_stage(study(Variant("a"), folds=None).runs(prints), "finetune")
    assert tuple(run.fold for run in runs) == recipes.corpus("synthetic").folds


def test_the_pretraining_length_study_uses_the_weights_kept_on_the_way() -> None:
    runs = experiment.find("ablation_pretrain_epochs").at_smoke_size().runs(prints)
    (pretrain,) = by_stage(runs, "pretrain")
    assert isinstance(pretrain.config, PretrainConfig)
    epochs = {run.config.initial.epoch for run in runs if isinstance(run.config, FinetuneConfig)}
    assert epochs == {*pretrain.config.keep_epochs, None}


def test_studies_share_runs_with_each_other() -> None:
    """Contrast at its published weight, all modules on, and 100 epochs of pre-training are one and the same run."""
    wanted = [
        ("ablation_hierarchical", "skips + contrast + fusion"),
        ("ablation_loss_weight", "0.0025"),
        ("ablation_pretrain_epochs", "100"),
    ]
    wanted += [("ablation_fusion", "both at once"), ("ablation_model_scale", "base"), ("main_results", "base AV")]
    ids = [
        {
            run.run_id
            for run in by_stage(experiment.find(name).at_smoke_size().runs(prints), "finetune")
            if variant in run.variants
        }
        for name, variant in wanted
    ]
    assert all(found == ids[0] for found in ids)


deltas = st.fixed_dictionaries(
    {},
    optional={
        "decoder.skip_connections": st.booleans(),
        "objective.contrastive": st.sampled_from(["none", "hierarchical"]),
        "head.feature_fusion": st.sampled_from(["last", "hierarchical"]),
        "encoder.fusion_depth": st.integers(1, 3),
        "finetune.optim.epochs": st.integers(8, 10),
    },
)


@settings(deadline=None, max_examples=40)
@given(st.lists(deltas, min_size=1, max_size=6), st.sampled_from([(0,), (0, 1)]))
def test_enumeration_is_sound(changes: list[dict[str, Any]], seeds: tuple[int, ...]) -> None:
    """Whatever the variants: ids are unique and right, dependencies come first, every place is filled exactly once."""
    made = study(*(Variant(str(number), delta) for number, delta in enumerate(changes)), seeds=seeds)
    runs = made.runs(prints)
    ids = [run.run_id for run in runs]
    assert len(set(ids)) == len(ids)
    assert ids == [run_id(run.config) for run in runs]
    assert all(ids.index(needed) < ids.index(run.run_id) for run in runs for needed in run.depends_on)
    places = [(name, run.fold, run.seed) for run in by_stage(runs, "finetune") for name in run.variants]
    assert sorted(places) == sorted((str(n), fold, seed) for n in range(len(changes)) for fold in (1, 2) for seed in seeds)
    for run in runs:
        for name in run.variants:
            wanted = split_delta(changes[int(name)])[run.stage]
            flat = flatten(run.config)
            assert all(flat[field] == value for field, value in wanted.items())
    assert [run.run_id for run in made.runs(prints)] == ids


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        ({"objective.contrastiv": "none"}, "'objective.contrastiv'; valid, nearest first: objective.contrastive,"),
        ({"finetune.objective.contrastive": "none"}, "field in a delta"),
        ({"encoder": 3}, "field in a delta 'encoder'"),
    ],
)
def test_a_field_that_no_stage_has_is_refused_with_the_nearest_first(delta: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        study(Variant("a", delta)).runs(prints)
    assert message in str(refused.value)


def test_a_value_that_the_configuration_refuses_names_the_field() -> None:
    with pytest.raises(UsageError, match=r"contrastive = 'some': must be one of none, last, hierarchical"):
        study(Variant("a", {"objective.contrastive": "some"})).runs(prints)


def test_unusable_declarations_are_refused() -> None:
    with pytest.raises(UsageError, match="distinct names"):
        study(Variant("a"), Variant("a"))
    with pytest.raises(UsageError, match="distinct names"):
        study()
    with pytest.raises(UsageError, match="it names files"):
        Experiment(name="../x", title="t", variants=(Variant("a"),), corpora=("synthetic",))
    with pytest.raises(UsageError, match="baseline of s 'b'; valid, nearest first: a"):
        study(Variant("a"), table=Table(baseline="b"))
    with pytest.raises(UsageError, match=r"synthetic has no fold 99"):
        study(Variant("a"), folds=(99,)).runs(prints)
    with pytest.raises(UsageError, match="corpus 'synthetik'; valid, nearest first: synthetic"):
        study(Variant("a"), corpora=("synthetik",)).runs(prints)


def test_unknown_studies_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'ablation_hierachical'; valid, nearest first: ablation_hierarchical"):
        experiment.find("ablation_hierachical")
    with pytest.raises(UsageError, match="no such file"):
        experiment.find(str(tmp_path / "absent.py"))
    (tmp_path / "empty.py").write_text('"""Nothing."""\n')
    with pytest.raises(UsageError, match=r"needs a function study\(\)"):
        experiment.find(str(tmp_path / "empty.py"))
    (tmp_path / "broken.py").write_text("def study(:\n")
    with pytest.raises(UsageError, match=r"broken\.py:1: invalid syntax"):
        experiment.find(str(tmp_path / "broken.py"))
    assert not (tmp_path / "__pycache__").exists()


def test_a_study_of_ones_own_is_a_copy_of_the_template(tmp_path: Path) -> None:
    copy = tmp_path / "my_study.py"
    copy.write_text((CHECKOUT / "experiments" / "template.py").read_text())
    runs = experiment.find(str(copy)).at_smoke_size().runs(prints)
    assert len(by_stage(runs, "pretrain")) == 1
    assert {run.seed for run in by_stage(runs, "finetune")} == {0, 1}


def test_size_deltas_turn_the_base_into_the_size() -> None:
    assert size_delta("base") == {}
    assert size_delta("tiny") == {
        "encoder.dim": 256,
        "encoder.heads": 4,
        "encoder.fusion_heads": 4,
        "decoder.dim": 128,
        "decoder.heads": 2,
    }


@pytest.fixture
def eight() -> list[Run]:
    return experiment.find("ablation_hierarchical").at_smoke_size().runs(prints)


def test_only_takes_a_part_and_what_it_needs(eight: list[Run]) -> None:
    chosen = select(eight, ["variant=none", "fold=2"])
    assert [(run.stage, run.fold) for run in chosen] == [("pretrain", None), ("finetune", 2)]
    assert chosen[1].depends_on == (chosen[0].run_id,)
    assert select(eight, []) == eight
    assert len(by_stage(select(eight, ["variant=none", "variant=fusion"]), "finetune")) == 4
    assert len(by_stage(select(eight, ["variant=none,fusion"]), "finetune")) == 4
    assert len(by_stage(select(eight, ["variant=skips*", "fold=1"]), "finetune")) == 4
    assert {run.stage for run in select(eight, ["stage=pretrain"])} == {"pretrain"}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["variant=fusio"], "unknown variant 'fusio'; valid, nearest first: fusion,"),
        (["fold=7"], "unknown fold '7'; valid, nearest first: 1, 2"),
        (["colour=red"], "unknown filter 'colour'; valid, nearest first:"),
        (["none"], "a filter is key=value"),
        (["stage=pretrain", "fold=1"], "their combination does not"),
    ],
)
def test_a_filter_that_lets_nothing_through_says_why(eight: list[Run], filters: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        select(eight, filters)
    assert message in str(refused.value)


def golden_ids() -> dict[str, list[str]]:
    return {name: [run.run_id for run in experiment.find(name).at_smoke_size().runs(prints)] for name in experiment.names()}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_ids(), indent=1) + "\n")
