"""A search's declaration is checked before the first trial: the space against the configuration, and what it is judged on."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import search as searches
from experiments.search import Budget, Bundle, Choice, Float, Int, Search
from experiments.search import space as spaces
from hicmae.config import flatten
from hicmae.errors import UsageError

LR = {"finetune.optim.base_lr": Float(1e-4, 1e-2, log=True)}
CONDITIONAL: spaces.Space = {
    "objective.contrastive": Choice(("none", "last", "hierarchical")),
    "objective.contrastive_weight": Float(1e-4, 1e-1, log=True, when={"objective.contrastive": ("last", "hierarchical")}),
    "objective.temperature": Float(0.05, 0.2, when={"objective.contrastive": "hierarchical"}),
}


def declared(space: dict[str, Any], **changes: Any) -> Search:
    return Search(**{"name": "trying", "title": "Trying", "space": space, "budget": Budget(trials=3), "fold": 1, **changes})


def smoke(space: dict[str, Any], **changes: Any) -> Search:
    return declared(space, corpus="synthetic", size="smoke", pretrain_corpus="synthetic", **changes)


def test_the_declared_searches_can_run_at_every_corner_of_their_spaces() -> None:
    assert searches.names() == ("search_finetune", "search_loss_weight", "search_pretrain")
    for name in searches.names():
        for search in (searches.find(name), searches.find(name).at_smoke_size()):
            part = search.parts()[0]
            part.check_space()
            recipe = part.recipe()
            assert recipe is not None, f"the published recipe lies outside the space of {search.name}"
            assert [run.run_id for run in part.trial_runs(7, spaces.delta(part.space, recipe), 1, str)] == [
                run.run_id for run in part.trial_runs(0, {}, 1, str)
            ]


@pytest.mark.parametrize(
    ("space", "field", "limits"),
    [
        ({"finetune.optim.layer_decay": Float(0.5, 1.5)}, "finetune.optim.layer_decay = 1.5", "between 0.001 and 1"),
        ({"augment.label_smoothing": Float(0.0, 1.0)}, "augment.label_smoothing = 1.0", "between 0 and 0.999"),
        ({"finetune.optim.warmup_epochs": Int(0, 99)}, "finetune.optim.warmup_epochs = 99", "must not exceed epochs ="),
        ({"head.feature_fusion": Choice(("last", "first"))}, "head.feature_fusion = 'first'", "hierarchical, last"),
        ({"encoder.heads": Int(1, 3)}, "encoder.heads = 3", "must be a multiple of heads"),  # 1 and 2 are fine
        ({"objective.video_mask_ratio": Float(0.5, 1.0)}, "objective.video_mask_ratio = 1.0", "leave at least 1"),
        ({"pretrain.optim.epochs": Choice((4, "many"))}, "pretrain.optim.epochs = 'many'", "of type int"),
    ],
)
def test_a_space_that_the_configuration_refuses_is_named_with_field_and_limits(
    space: dict[str, Any], field: str, limits: str
) -> None:
    with pytest.raises(UsageError) as refused:
        smoke({**space, **LR}).check_space()
    assert field in str(refused.value) and limits in str(refused.value)
    assert "base_lr" not in str(refused.value), "the range that is not at fault is named"
    assert "\n" not in str(refused.value)


def test_values_that_are_refused_only_together_are_named_together() -> None:
    space = {"finetune.optim.epochs": Int(2, 8), "finetune.optim.warmup_epochs": Int(0, 4), **LR}
    with pytest.raises(UsageError, match=r"epochs = 2 and finetune.optim.warmup_epochs = 4.*must not exceed epochs = 2"):
        smoke(space).check_space()


def test_a_condition_keeps_values_apart_that_do_not_fit() -> None:
    space = {
        "finetune.optim.epochs": Choice((2, 8)),
        "finetune.optim.warmup_epochs": Int(0, 4, when={"finetune.optim.epochs": 8}),
    }
    smoke(space).check_space()


def test_every_option_of_a_space_too_large_for_all_its_corners_is_tried() -> None:
    names = ["drop_path", "weight_decay", "base_min_lr", "base_lr", "ema_decay"]
    space: dict[str, Any] = {f"finetune.optim.{name}": Float(0.1, 0.2) for name in names}
    space |= {f"augment.{name}": Choice((0.0, 0.1, 0.2)) for name in ("mixup", "cutmix", "random_erasing", "label_smoothing")}
    space["head.modality"] = Choice(("A", "V", "AV", "VA"))
    with pytest.raises(UsageError, match=r"head.modality = 'VA'"):
        smoke(space).check_space()


def test_a_bundle_changes_fields_that_fit_only_together() -> None:
    space = {"decoder": Bundle({"deep": {}, "shallow": {"decoder.depth": 2, "objective.levels": (4,)}})}
    search = smoke(space)
    search.check_space()
    assert search.recipe() == {"decoder": "deep"}
    runs = search.trial_runs(0, spaces.delta(space, {"decoder": "shallow"}), 1, str)
    assert flatten(runs[0].config)["objective.levels"] == (4,)
    with pytest.raises(UsageError, match=r"decoder = 'alone'.*levels"):
        smoke({"decoder": Bundle({"alone": {"decoder.depth": 2}})}).check_space()


@given(seed=st.integers(0, 2**32))
def test_a_draw_has_exactly_the_dimensions_whose_conditions_hold(seed: int) -> None:
    generator = random.Random(seed)
    params = spaces.draw(CONDITIONAL, lambda name, dimension: generator.choice(dimension.values()))
    contrast = params["objective.contrastive"]
    assert ("objective.contrastive_weight" in params) == (contrast != "none")
    assert ("objective.temperature" in params) == (contrast == "hierarchical")
    assert spaces.delta(CONDITIONAL, params) == params
    assert set(params) <= set(spaces.fields(CONDITIONAL))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: smoke({}), "the space is empty"),
        (lambda: smoke(LR, name="../mine"), "it names files"),
        (lambda: smoke({"optim.learning_rate": Float(0.1, 1)}), "unknown field in a delta 'optim.learning_rate'; valid, nearest"),
        (lambda: smoke({"a": Float(0, 1, when={"b": 1})}), "unknown dimension in `when` of a"),
        (
            lambda: smoke({"head.modality": Choice(("A", "V")), "seed": Int(0, 1, when={"head.modality": "X"})}),
            "unknown value of head",
        ),
        (lambda: Float(1.0, 0.5), "the lower one first"),
        (lambda: Float(0.0, 0.5, log=True), "must start above 0"),
        (lambda: Float(0.0, float("inf")), "two finite numbers"),
        (lambda: Int(0, 10, step=3), "the step must lead to the end"),
        (lambda: Int(0, 1.5), "whole numbers"),  # type: ignore[arg-type]
        (lambda: Choice(()), "distinct options"),
        (lambda: Choice((1, 1)), "distinct options"),
        (lambda: Budget(trials=0), "must be more than zero"),
        (lambda: Budget(gpu_hours=0.0), "must be more than zero"),
        (lambda: Budget(), "needs a budget"),
        (lambda: smoke(LR, objective="test UAR"), "seen once, by the chosen configuration"),
        (lambda: smoke(LR, objective="oracle UAR"), "seen once, by the chosen configuration"),
        (lambda: smoke(LR, objective="UAR"), "is 'validation <metric>'"),
        (lambda: smoke(LR, objective="validation UARR"), "unknown metric of synthetic 'UARR'; valid, nearest first: UAR"),
        (lambda: declared(LR, corpus="voxceleb2"), "voxceleb2 has no labels"),
        (lambda: smoke({"evaluation.selection": Choice(("last", "validation"))}), "would not be comparable"),
        (lambda: smoke({"finetune.seed": Int(0, 3)}), "would not be comparable"),
        (lambda: smoke({"data.fold": Int(1, 3)}), "would not be comparable"),
        (lambda: smoke(LR, base={"evaluation.oracle": True}), "would not be comparable"),
        (lambda: smoke(LR, splits=0), "splits = 0"),
        (lambda: smoke(LR, objective=lambda params: 0.0), "unknown direction"),
        (lambda: replace(smoke(LR), folds=(9,), fold=None).parts(), "has no fold 9"),
        (lambda: searches.find("search_finetun"), "unknown search 'search_finetun'; valid, nearest first: search_finetune"),
        (lambda: searches.find("nowhere/file.py"), "no such file"),
    ],
)
def test_a_wrong_declaration_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        make()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_trials_never_read_the_test_part_and_each_split_cuts_another_validation_part() -> None:
    runs = smoke(LR, splits=3).trial_runs(0, {"finetune.optim.base_lr": 1e-3}, 3, str)
    tunings = [run for run in runs if run.stage == "finetune"]
    assert len(runs) == 4 and {run.depends_on for run in tunings} == {(runs[0].run_id,)}
    assert [flatten(run.config)["evaluation.selection"] for run in tunings] == ["inner"] * 3
    assert [run.seed for run in tunings] == [0, 1, 2], "the seed draws the cut"
    assert {run.fold for run in tunings} == {1}


def test_metrics_know_their_direction() -> None:
    assert smoke(LR).maximizes and smoke(LR).metric == "UAR"
    assert not smoke(LR, objective="validation loss").maximizes
    regression = declared(LR, corpus="werewolf_xl", objective="validation CCC arousal")
    assert regression.maximizes and regression.metric == "CCC arousal"
