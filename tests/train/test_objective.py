"""The random choices of a step: the same whole batch for any number of processes, and right on average."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_worker import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from hicmae.config import AugmentConfig, EngineConfig, FinetuneConfig, HeadConfig, OptimConfig, PretrainConfig, RunConfig, change
from hicmae.data import corpora
from hicmae.data.loader import share
from hicmae.errors import ConfigError, UsageError
from hicmae.model.classify import HiCMAEClassifier
from hicmae.train import objective

CONFIG = FinetuneConfig(
    encoder=TINY, head=HeadConfig(outputs=3), augment=AugmentConfig(mixup=0.8, cutmix=1.0), optim=OptimConfig(batch_size=8)
)

SOUND_ALONE = FinetuneConfig(
    encoder=replace(TINY, depth=1, fusion_depth=1), head=HeadConfig(outputs=3, modality="A"), optim=OptimConfig(batch_size=2)
)


def whole_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"video": torch.randn(8, 3, 4, 32, 32, generator=generator), "label": torch.arange(8) % 3}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 0.9), min_size=1, max_size=6), st.integers(1, 64), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_share_of_the_drops_is_that_share_of_the_whole(rates: list[float], batch: int, seed: int, step: int) -> None:
    rates = [*rates, 0.5]
    whole = objective.drop_keep(rates, batch, torch.arange(batch), seed, step)
    position = torch.randperm(batch)[: max(1, batch // 2)]
    part = objective.drop_keep(rates, batch, position, seed, step)
    assert whole is not None and part is not None
    assert whole.shape == (len(rates), batch) and torch.equal(part, whole[:, position])
    for rate, row in zip(rates, whole, strict=True):
        assert all(value == 0 or value == pytest.approx(1 / (1 - rate), rel=1e-5) for value in row.tolist())


def test_drops_keep_the_mean_and_differ_from_step_to_step() -> None:
    rates, position = [0.0, 0.1, 0.5], torch.arange(5000)
    drawn = [objective.drop_keep(rates, 5000, position, 0, step) for step in (0, 1)]
    assert drawn[0] is not None and drawn[1] is not None and not torch.equal(drawn[0], drawn[1])
    # Four standard deviations of the mean of 5000 draws of value 1 / keep with probability keep.
    for rate, row in zip(rates, drawn[0], strict=True):
        assert row.mean().item() == pytest.approx(1.0, abs=4 * (rate / (1 - rate) / 5000) ** 0.5 + 1e-6)


def test_nothing_is_drawn_when_nothing_can_drop() -> None:
    assert objective.drop_keep([0.0, 0.0], 4, torch.arange(4), 0, 0) is None


def test_rates_rise_with_depth_to_the_configured_one_in_every_stack() -> None:
    model = objective.build_model(CONFIG)
    assert isinstance(model, HiCMAEClassifier)
    assert model.drop_keep_plan(0.1) == pytest.approx([0, 0, 0.1, 0.1] * 2 + [0, 0, 0] * 2)


@pytest.mark.parametrize("parts", [2, 4])
def test_mixing_shares_of_a_batch_is_mixing_the_batch(parts: int) -> None:
    """With the loader's shares (mirrored halves) every sample meets the partner that it meets in one process."""
    for step in range(6):  # some steps mix, some cut
        whole, mix = whole_batch(), objective.mixing(CONFIG, 1)
        assert mix is not None
        mix(whole, step)
        for part in range(parts):
            positions = share(8, part, parts)
            mine = {name: value[positions].clone() for name, value in whole_batch().items()}
            mix(mine, step)
            torch.testing.assert_close(mine["video"], whole["video"][positions])
            torch.testing.assert_close(mine["label"], whole["label"][positions])


def test_mixed_labels_are_smoothed_probabilities_and_sound_is_left_alone() -> None:
    batch = {**whole_batch(), "audio": torch.ones(8, 1, 4, 4)}
    mix = objective.mixing(CONFIG, 1)
    assert mix is not None
    mix(batch, 3)
    assert batch["label"].shape == (8, 3) and torch.allclose(batch["label"].sum(1), torch.ones(8))
    assert batch["label"].min().item() == pytest.approx(0.1 / 3, rel=1e-5)
    assert torch.equal(batch["audio"], torch.ones(8, 1, 4, 4))


def test_mixing_leaves_the_global_random_state_alone() -> None:
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    mix = objective.mixing(CONFIG, 1)
    assert mix is not None
    mix(whole_batch(), 0)
    assert np.random.rand() == expected  # noqa: NPY002


@pytest.mark.parametrize("delta", [{"augment.mixup": 0.0, "augment.cutmix": 0.0}, {"head.modality": "A"}])
def test_where_there_is_nothing_to_mix(delta: dict[str, object]) -> None:
    assert objective.mixing(change(CONFIG, delta), 1) is None


def test_an_odd_share_cannot_be_paired() -> None:
    with pytest.raises(UsageError, match="must be even"):
        objective.mixing(CONFIG, 8)


def test_contrast_without_negatives_is_refused_with_what_is_allowed() -> None:
    """A softmax over one clip is 0 whatever the weights: nothing would be learnt from it, and nothing would say so."""
    config = change(PretrainConfig(), {"optim.batch_size": 8, "optim.accumulation_steps": 2})
    objective.check_contrast(config, 2)
    with pytest.raises(UsageError, match=r"optim.batch_size = 8 on 4 processes x 2 accumulation steps .* at least 16"):
        objective.check_contrast(config, 4)
    for delta in ({"objective.gather_negatives": True}, {"objective.contrastive": "none"}):
        objective.check_contrast(change(config, delta), 4)
    objective.check_contrast(change(CONFIG, {"optim.batch_size": 4}), 4)


@pytest.mark.parametrize(
    ("delta", "words"),
    [
        ({"head.outputs": 3}, r"HeadConfig.outputs = 3: must be 4, the classes of synthetic"),
        ({"head.outputs": 5}, r"HeadConfig.outputs = 5: must be 4"),
        (
            {"data.corpus": "werewolf_xl", "head": HeadConfig("regression", 1, loss="mse")},
            r"outputs = 1: must be 3, the targets of w",
        ),
        ({"data.corpus": "werewolf_xl"}, r"HeadConfig.task = 'classification': werewolf_xl is a corpus for regression; choose"),
        ({"head": HeadConfig("regression", 4, loss="mse")}, r"task = 'regression': synthetic is a corpus for classification"),
        ({"data.corpus": "voxceleb2"}, r"task = 'classification': voxceleb2 is a corpus for pretraining; .* another corpus"),
    ],
)
def test_a_head_that_does_not_fit_the_corpus_is_refused(delta: dict[str, Any], words: str) -> None:
    plain = change(CONFIG, {"head.outputs": 4, "augment.mixup": 0.0, "augment.cutmix": 0.0})
    corpora.check_head(plain)
    with pytest.raises(ConfigError, match=words):
        corpora.check_head(change(plain, delta))


def test_initial_weights_follow_from_the_seed() -> None:
    def weights(config: RunConfig) -> torch.Tensor:
        return torch.cat([value.flatten() for value in objective.build_model(config).state_dict().values()])

    assert torch.equal(weights(CONFIG), weights(CONFIG))
    assert not torch.equal(weights(CONFIG), weights(change(CONFIG, {"seed": 1})))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision_is_that_of_the_products(precision: str, dtype: torch.dtype) -> None:
    with objective.autocast(EngineConfig(precision=precision), torch.device("cpu")):
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


@pytest.mark.slow
@pytest.mark.system("g++")
def test_compiled_it_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile changes the speed alone: losses and gradients as eager, and the parameters keep their names."""
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "vec_isa_ok", True)  # trust the processor's flags: trying each out takes 20 s
    found = []
    for compiled in (False, True):
        config = change(SOUND_ALONE, {"engine.compile": compiled})
        model = objective.build_model(config)
        loss = objective.build_objective(config, model)({"audio": torch.ones(2, 1, 32, 32), "label": torch.arange(2)})["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        found.append({"loss": loss} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_compiling_without_a_compiler_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    config = change(SOUND_ALONE, {"engine.compile": True})
    with pytest.raises(UsageError, match=r"C\+\+ compiler \(g\+\+ or clang\+\+\); install one"):
        objective.build_objective(config, objective.build_model(config))
