"""Batches: the same samples and pixels for any number of processes, workers, accumulation steps and resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from media_files import grey_frames, tone, write_clip, write_table

from hicmae import presets
from hicmae.config import FinetuneConfig, PretrainConfig, change
from hicmae.data import corpora, order
from hicmae.data.clipstore import DirectClips
from hicmae.data.dataset import Draw, FinetuneClips, Memory, PretrainClips
from hicmae.data.finish import finish_batch
from hicmae.data.loader import Batch, finetune_batches, pretrain_batches, share
from hicmae.errors import ClipError, UsageError


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("corpus"), clips=20)


@pytest.fixture(autouse=True)
def shared_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HICMAE_STORE", str(tmp_path_factory.getbasetemp() / "shared_store"))


def pretrain(table: Path, **delta: object) -> PretrainConfig:
    config = presets.pretrain("smoke", f"csv:{table}")
    return change(
        config, {"optim.batch_size": 8, "encoder.image_px": 32, **{key.replace("__", "."): value for key, value in delta.items()}}
    )


def finetune(table: Path, **delta: object) -> FinetuneConfig:
    config = presets.finetune("smoke", f"csv:{table}", outputs=2)
    return change(
        config, {"optim.batch_size": 4, "encoder.image_px": 32, **{key.replace("__", "."): value for key, value in delta.items()}}
    )


def same(first: Batch, second: Batch) -> bool:
    return all(
        torch.equal(value, second[key]) if torch.is_tensor(value) else value == second[key] for key, value in first.items()
    )


def by_position(batches: list[Batch]) -> dict[int, dict[str, torch.Tensor | str]]:
    found = {}
    for batch in batches:
        for row, position in enumerate(batch["position"].tolist()):
            assert position not in found
            found[position] = {key: value[row] for key, value in batch.items()}
    return found


def test_pretraining_batches_have_the_shapes_of_the_model(table: Path) -> None:
    batches = pretrain_batches(pretrain(table))
    assert (batches.steps_per_epoch, len(batches.samples)) == (2, 20)
    batch = next(batches.epoch(0))
    assert batch["video"].shape == (8, 3, 4, 32, 32)
    assert batch["audio"].shape == (8, 1, 128, 32)
    assert batch["masked_video"].shape == (8, 2 * 2 * 2)
    assert batch["masked_audio"].shape == (8, 8 * 2)
    assert {batch[key].dtype for key in ("video", "audio")} == {torch.float32}
    assert {batch[key].dtype for key in ("masked_video", "masked_audio")} == {torch.bool}
    assert batch["masked_video"].sum(1).tolist() == [2 * 3] * 8
    assert batch["position"].tolist() == list(range(8))
    assert torch.isfinite(batch["audio"]).all()


def test_pixels_are_normalised_with_imagenets_mean_and_deviation(table: Path) -> None:
    batch = next(finetune_batches(finetune(table), "test").epoch(0))
    first = batch["video"][0, :, 0].mean((1, 2))  # frame 0 is grey 10 of 255
    expected = (10 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(first, expected, atol=0.03)


def test_an_epoch_has_every_clip_at_most_once_and_another_order_every_time(table: Path) -> None:
    batches = pretrain_batches(pretrain(table))
    first, second = ([name for batch in batches.epoch(epoch) for name in batch["sample_id"]] for epoch in (0, 1))
    assert len(set(first)) == len(first) == 16
    assert first != second


def test_equal_seeds_give_equal_batches_and_others_do_not(table: Path) -> None:
    first, again = (next(pretrain_batches(pretrain(table)).epoch(3)) for _ in range(2))
    assert same(first, again)
    assert not same(first, next(pretrain_batches(pretrain(table, seed=1)).epoch(3)))


def test_a_sample_depends_on_seed_epoch_and_id_alone(table: Path) -> None:
    small, large = (pretrain(table, optim__batch_size=size) for size in (4, 20))
    found = {}
    for config in (small, large):
        for batch in pretrain_batches(config).epoch(2):
            for row, name in enumerate(batch["sample_id"]):
                example = {key: batch[key][row] for key in ("video", "audio", "masked_video", "masked_audio")}
                assert all(torch.equal(value, found.setdefault(name, example)[key]) for key, value in example.items())


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_the_global_batch_is_the_same_for_any_number_of_processes(table: Path, world: int, accumulation: int) -> None:
    whole = list(pretrain_batches(pretrain(table)).epoch(1))
    parts = [
        list(pretrain_batches(pretrain(table, optim__accumulation_steps=accumulation), rank=rank, world_size=world).epoch(1))
        for rank in range(world)
    ]
    for step, expected in enumerate(whole):
        shares = [batch for mine in parts for batch in mine[step * accumulation : (step + 1) * accumulation]]
        found = by_position(shares)
        assert sorted(found) == list(range(8))
        for position, example in found.items():
            assert example["sample_id"] == expected["sample_id"][position]
            assert torch.equal(example["video"], expected["video"][position])
        for batch in shares:  # flipping a share pairs the samples that flipping the whole pairs
            assert batch["position"].flip(0).tolist() == [7 - position for position in batch["position"].tolist()]


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_an_epoch_can_start_at_any_step(table: Path, start: int) -> None:
    config = pretrain(table, optim__batch_size=4, optim__accumulation_steps=2)
    batches = pretrain_batches(config)
    whole, rest = list(batches.epoch(0)), list(batches.epoch(0, start_step=start))
    assert len(whole) == 10
    assert len(rest) == 10 - 2 * start
    assert all(same(*pair) for pair in zip(whole[2 * start :], rest, strict=True))


def test_workers_change_nothing(table: Path) -> None:
    alone, helped = pretrain_batches(pretrain(table)), pretrain_batches(pretrain(table), workers=2)
    for epoch in (0, 1):
        assert all(same(*pair) for pair in zip(alone.epoch(epoch), helped.epoch(epoch), strict=True))
    assert helped.waiting_s > 0


def test_the_store_changes_nothing(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = finetune(table)
    stored = list(finetune_batches(config, "train").epoch(0))
    monkeypatch.setenv("HICMAE_STORE", "off")
    assert all(same(*pair) for pair in zip(stored, finetune_batches(config, "train").epoch(0), strict=True))


def test_train_and_test_parts_are_disjoint_and_whole(table: Path) -> None:
    names = {part: {sample.sample_id for sample in finetune_batches(finetune(table), part).samples} for part in ("train", "test")}
    assert not names["train"] & names["test"]
    assert len(names["train"] | names["test"]) == 20


def test_test_batches_have_every_view_once_in_order_and_keep_the_last_batch(table: Path) -> None:
    config = finetune(table, optim__batch_size=6)
    batches = finetune_batches(config, "test")
    whole = list(batches.epoch(0))
    assert [len(batch["sample_id"]) for batch in whole] == [6, 6, 6, 2]
    assert batches.steps_per_epoch == 4
    seen = [(name, view) for batch in whole for name, view in zip(batch["sample_id"], batch["view"].tolist(), strict=True)]
    assert seen == [(sample.sample_id, view) for sample in batches.samples for view in (0, 1)]
    parts = [batch for rank in range(3) for batch in finetune_batches(config, "test", rank=rank, world_size=3).epoch(0)]
    assert by_position(parts).keys() == by_position(whole).keys()
    for position, example in by_position(parts).items():
        assert torch.equal(example["audio"], by_position(whole)[position]["audio"])


def test_three_crops_give_three_times_the_views(table: Path) -> None:
    batch = next(finetune_batches(finetune(table, evaluation__crops="three", optim__batch_size=6), "test").epoch(0))
    assert batch["view"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["video"].shape == (6, 3, 4, 32, 32)


def test_a_modality_alone_leaves_the_other_out(table: Path) -> None:
    sound = next(finetune_batches(finetune(table, head__modality="A"), "train").epoch(0))
    picture = next(finetune_batches(finetune(table, head__modality="V"), "train").epoch(0))
    assert "video" not in sound
    assert "audio" not in picture
    assert sound["label"].shape == picture["label"].shape == (4,)


def test_repeats_show_a_clip_several_times_with_other_changes(table: Path) -> None:
    config = finetune(table, augment__repeats=2, augment__crop_scales=(1.0, 0.75), augment__random_erasing=1.0)
    batches = finetune_batches(config, "train")
    batch = next(batches.epoch(0))
    assert batches.steps_per_epoch == 5
    assert batch["sample_id"][0] == batch["sample_id"][1] != batch["sample_id"][2]
    assert not torch.equal(batch["video"][0], batch["video"][1])


def uneven(tmp_path: Path) -> Path:
    """A table of 13, 4 and 3 sound clips of three classes, all for training."""
    write_clip(tmp_path / "a.wav", None, tone(0.2, 16000))
    labels = [0] * 13 + [1] * 4 + [2] * 3
    rows = [f"clip{number:02d},a.wav,{label}" for number, label in enumerate(labels)]
    (tmp_path / "clips.csv").write_text("\n".join(["sample_id,audio,label", *rows]) + "\n")
    corpora.get.cache_clear()
    return tmp_path / "clips.csv"


def test_stratified_batches_hold_every_class_alike(tmp_path: Path) -> None:
    delta = {
        "data__sampling": "stratified",
        "head__modality": "A",
        "head__outputs": 3,
        "optim__batch_size": 10,
        "data__fold": None,
    }
    config = finetune(uneven(tmp_path), **delta)
    batches = finetune_batches(config, "train")
    epochs = [list(batches.epoch(epoch)) for epoch in (0, 1)]
    assert batches.steps_per_epoch == 2
    for batch in (batch for batches_ in epochs for batch in batches_):
        counts = torch.bincount(batch["label"], minlength=3)
        assert int(counts.max() - counts.min()) <= 1
    names = [[name for batch in batches_ for name in batch["sample_id"]] for batches_ in epochs]
    assert names[0] != names[1]
    first = [
        features for batch in epochs[0] for features, label in zip(batch["audio"], batch["label"], strict=True) if label == 2
    ]
    assert len({float(features.sum()) for features in first}) == len(first) > 3  # a clip that comes again sounds otherwise
    again = list(finetune_batches(config, "train").epoch(0, start_step=1))
    assert same(again[0], epochs[0][1])
    halves = [list(finetune_batches(config, "train", rank=rank, world_size=2).epoch(0)) for rank in (0, 1)]
    for step, whole in enumerate(epochs[0]):
        found = by_position([half[step] for half in halves])
        assert [found[position]["sample_id"] for position in range(10)] == whole["sample_id"]
        assert all(torch.equal(found[position]["audio"], whole["audio"][position]) for position in range(10))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batch=st.integers(1, 12),
    steps=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_stratified_orders_are_even_and_say_how_often_a_clip_was_shown(
    sizes: list[int], batch: int, steps: int, seed: int
) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    turns = order.stratified(labels, batch, steps, seed, epoch=0)
    assert len(turns) == batch * steps
    for group in (turns[start : start + batch] for start in range(0, len(turns), batch)):
        counts = [sum(labels[number] == label for number, _ in group) for label in range(len(sizes))]
        assert max(counts) - min(counts) <= 1
    totals = [sum(labels[number] == label for number, _ in turns) for label in range(len(sizes))]
    assert max(totals) - min(totals) <= 1
    assert len(set(turns)) == len(turns)  # no showing of a clip is there twice
    assert all(times == 0 or (number, times - 1) in turns for number, times in turns)


def test_frames_that_travel_as_bytes_arrive_as_the_same_frames(table: Path) -> None:
    corpus = corpora.get(f"csv:{table}")
    samples = corpus.samples(table.parent)[:6]
    draws = [Draw(number, 0, 0, number) for number in range(6)]
    source = DirectClips(samples, corpus, 32)
    changes = {"augment__flip": True, "augment__random_erasing": 0.7, "augment__crop": "random_resized"}
    for clips in (
        FinetuneClips(finetune(table, **changes), samples, source, range(6), views=False),
        FinetuneClips(finetune(table), samples, source, range(6), views=True),
        PretrainClips(pretrain(table), samples, source, range(6)),
        FinetuneClips(finetune(table, head__modality="A"), samples, source, range(6), views=False),
    ):
        packed = clips.packed_batch(draws)
        assert "video" not in packed or packed["video"].dtype == torch.uint8
        finished, whole = finish_batch(packed, torch.device("cpu")), clips.batch(draws)
        assert finished.keys() == whole.keys()
        assert same(finished, whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_equal_those_on_the_cpu(table: Path) -> None:
    config = finetune(table, augment__flip=True, augment__random_erasing=0.7)
    there = finetune_batches(config, "train", device="cuda", workers=1)
    for mine, theirs in zip(finetune_batches(config, "train").epoch(0), there.epoch(0), strict=True):
        assert theirs["video"].is_cuda
        assert same(mine, {key: value.cpu() if torch.is_tensor(value) else value for key, value in theirs.items()})


def test_the_gain_of_training_can_be_switched_off(tmp_path: Path) -> None:
    """A clip of one frame is heard whole whatever is drawn, so that only the gain can change its features."""
    (tmp_path / "clips.csv").write_text("video,label\na.mp4,0\nb.mp4,1\n")
    for name, pitch_hz in (("a", 300), ("b", 500)):
        write_clip(tmp_path / f"{name}.mp4", grey_frames(1), tone(0.5, 16000, pitch_hz))
    corpora.get.cache_clear()

    def heard(random_gain: bool) -> list[float]:
        config = finetune(tmp_path / "clips.csv", optim__batch_size=2, data__fold=None, augment__random_gain=random_gain)
        batches = finetune_batches(config, "train")
        return [float(batch["audio"].max()) for epoch in range(3) for batch in batches.epoch(epoch)]

    assert len(set(heard(random_gain=False))) == 1
    assert len(set(heard(random_gain=True))) == 3


def test_a_batch_larger_than_the_part_is_refused(table: Path) -> None:
    with pytest.raises(UsageError, match=r"optim.batch_size = 64 needs 64 clips in a step; the training part has 20"):
        pretrain_batches(pretrain(table, optim__batch_size=64))
    with pytest.raises(UsageError, match="does not divide over 3 processes"):
        pretrain_batches(pretrain(table), world_size=3)


def test_an_unknown_part_or_fold_names_the_valid_ones(table: Path) -> None:
    with pytest.raises(UsageError, match="unknown part 'testing'; valid, nearest first: test"):
        finetune_batches(finetune(table), "testing")
    with pytest.raises(UsageError, match="there is no fold 7; folds: 1, 2"):
        finetune_batches(finetune(table, data__fold=7), "test")


def test_clips_that_cannot_be_used_stop_the_run_or_are_counted(tmp_path: Path) -> None:
    table = write_table(tmp_path, clips=8)
    (tmp_path / "clips/clip03.mp4").unlink()
    write_clip(tmp_path / "clips/clip05.mp4", grey_frames(20))  # without sound
    with pytest.raises(ClipError, match=r"clip03.mp4: missing; 1 more clips cannot be used either; see `hicmae data check"):
        pretrain_batches(pretrain(table, optim__batch_size=2))
    batches = pretrain_batches(pretrain(table, optim__batch_size=2), on_error="skip")
    assert [(problem.sample_id, problem.reason) for problem in batches.skipped] == [
        ("clip03", "missing"),
        ("clip05", "no sound stream"),
    ]
    seen = {name for batch in batches.epoch(0) for name in batch["sample_id"]}
    assert seen == {f"clip{number:02d}" for number in (0, 1, 2, 4, 6, 7)}
    assert (
        finetune_batches(finetune(table, head__modality="V", optim__batch_size=2), "train", on_error="skip").skipped[0].sample_id
        == "clip03"
    )


def damage(path: Path) -> None:
    """Frames that cannot be decoded behind a header that is whole."""
    data = bytearray(
        write_clip(path, np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8), tone(0.8, 16000)).read_bytes()
    )
    start = data.find(b"mdat") + 4
    data[start : start + len(data) // 2] = bytes(len(data) // 2)
    path.write_bytes(data)


def test_without_the_store_the_same_clips_are_left_out_and_the_batches_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path, clips=8, frames=20)
    (tmp_path / "clips/clip01.mp4").unlink()
    damage(tmp_path / "clips/clip02.mp4")
    write_clip(tmp_path / "clips/clip03.mp4", grey_frames(20))  # without sound
    with table.open("a") as file:
        file.write(f"long,{'n' * 300}.mp4,calm,p0,1\nunder a file,clips.csv/a.mp4,calm,p0,1\n")
    found = []
    for place in (str(tmp_path / "store"), "off"):
        monkeypatch.setenv("HICMAE_STORE", place)
        with pytest.raises(ClipError, match=r"clip01.mp4: missing; 4 more clips cannot be used either; see `hicmae data check"):
            pretrain_batches(pretrain(table, optim__batch_size=2))
        batches = pretrain_batches(pretrain(table, optim__batch_size=2), on_error="skip")
        found.append((batches.skipped, list(batches.epoch(0))))
    (skipped, stored), (skipped_without, direct) = found
    assert [problem.sample_id for problem in skipped] == ["clip01", "clip02", "clip03", "long", "under a file"]
    assert skipped[1].reason.startswith("frames cannot be decoded")
    assert skipped == skipped_without
    assert len(stored) == len(direct) == 2
    assert all(same(mine, theirs) for mine, theirs in zip(stored, direct, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_breaks_during_training_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setenv("HICMAE_STORE", "off")
    batches = pretrain_batches(pretrain(write_table(tmp_path, clips=4, frames=10), optim__batch_size=4), workers=workers)
    clip = tmp_path / "clips/clip02.mp4"
    clip.unlink()
    with pytest.raises(ClipError) as caught:
        next(batches.epoch(0))
    assert str(caught.value) == f"{clip}: missing"


def test_short_and_odd_clips_make_whole_examples(tmp_path: Path) -> None:
    write_clip(tmp_path / "one frame.mp4", grey_frames(1), tone(0.3, 16000))
    write_clip(tmp_path / "wenig Ton ü.mp4", grey_frames(60, 50, 70), tone(0.2, 8000), 8000)
    write_clip(
        tmp_path / "vfr.mp4", grey_frames(30), tone(3.0, 48000), 48000, channels=2, times=[n + 40 * (n > 20) for n in range(30)]
    )
    (tmp_path / "clips.csv").write_text("video\none frame.mp4\nwenig Ton ü.mp4\nvfr.mp4\n")
    corpora.get.cache_clear()
    batch = next(pretrain_batches(pretrain(tmp_path / "clips.csv", optim__batch_size=3, objective__contrastive="none")).epoch(0))
    assert batch["video"].shape == (3, 3, 4, 32, 32)
    assert torch.isfinite(batch["audio"]).all()
    assert torch.isfinite(batch["video"]).all()


def test_the_memory_of_a_batch_is_used_again_when_nothing_of_the_batch_is_held() -> None:
    memory = Memory()
    first = memory.tensor((2, 3))
    place, part = first.data_ptr(), first[1].numpy()
    del first
    second = memory.tensor((2, 3))
    part[:] = 7
    second.fill_(1)
    assert second.data_ptr() != place
    assert part.tolist() == [7, 7, 7]
    del part
    assert memory.tensor((2, 3)).data_ptr() == place
    assert memory.tensor((1, 3)).shape == (1, 3)  # the last batch of an epoch


def test_batches_that_are_kept_stay_what_they_were(table: Path) -> None:
    kept = list(pretrain_batches(pretrain(table)).epoch(0))
    again = [batch["video"].clone() for batch in pretrain_batches(pretrain(table)).epoch(0)]
    assert len(kept) == 2
    assert all(torch.equal(batch["video"], video) for batch, video in zip(kept, again, strict=True))


@given(slots=st.integers(1, 8), local=st.integers(1, 12))
def test_shares_partition_the_batch_and_pair_mirror_images(slots: int, local: int) -> None:
    size = slots * local
    shares = [share(size, slot, slots) for slot in range(slots)]
    assert sorted(position for mine in shares for position in mine) == list(range(size))
    if local % 2 == 0:
        assert all([size - 1 - position for position in mine] == mine[::-1] for mine in shares)
    assert share(size, 0, 1) == list(range(size))


@pytest.mark.slow
@pytest.mark.recordings
def test_real_recordings_make_batches(recordings: Path) -> None:
    config = pretrain(recordings, optim__batch_size=4, data__corpus=f"folder:{recordings / 'voxceleb2'}")
    batches = pretrain_batches(config)
    assert len(batches.samples) == 14
    assert all(torch.isfinite(batch["audio"]).all() for batch in batches.epoch(0))
    sound = finetune(recordings, head__modality="A", head__outputs=8, data__corpus="ravdess", data__fold=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HICMAE_DATA", str(recordings))
        corpus_root = recordings / "ravdess_audio"
        patch.setattr("hicmae.data.location.corpus_root", lambda name: corpus_root)
        test = finetune_batches(sound, "test")
        assert len(test.samples) == 32
        assert {sample.group for sample in test.samples} == {"Actor_05", "Actor_06", "Actor_07", "Actor_08"}
        assert sorted({label for batch in test.epoch(0) for label in batch["label"].tolist()}) == list(range(8))
