"""Changes of frames: alike on all frames of a clip, in bounds, and as the authors' release where that is fixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, rand_augment_transform
from torchvision.transforms.functional import normalize

from hicmae.config import AugmentConfig
from hicmae.data import augment, finish
from hicmae.data.rand_augment import INTERPOLATIONS, OPERATIONS, rand_augment
from hicmae.errors import UsageError
from hicmae.seeding import seeded

POLICY = "rand-m7-n4-mstd0.5-inc1"


def picture(size: int = 64, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))


def normalised(frames: np.ndarray) -> torch.Tensor:
    video = torch.empty(3, *frames.shape[:3])
    finish.normalise(frames, video)
    return video


def augmented(frames: np.ndarray, config: AugmentConfig, seed: int = 0) -> torch.Tensor:
    video = torch.empty(3, *frames.shape[:3])
    made = augment.augment(frames, frames.shape[1], config, np.random.default_rng(seed), ("test", seed))
    finish.finish_clip(*made, video)
    return video


def still_clip(frames: int = 4, size: int = 64) -> np.ndarray:
    return np.stack([picture(size)] * frames)


def test_normalised_equals_torchvision() -> None:
    frames = np.stack([picture(seed=seed) for seed in range(3)])
    values = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    expected = normalize(values, list(finish.IMAGENET_MEAN), list(finish.IMAGENET_STD)).transpose(0, 1)
    assert torch.allclose(normalised(frames), expected, atol=1e-5)


def test_resizing_equals_pillow() -> None:
    frames = still_clip(2, 100)
    expected = np.asarray(Image.fromarray(frames[0]).resize((64, 64), Image.Resampling.BILINEAR), dtype=int)
    found = augment.resized(frames, 64)[1].astype(int)
    assert np.abs(found - expected).max() <= 1


def test_multi_scale_crops_are_those_of_the_release() -> None:
    # A picture whose pixels say where they are: red the row, green the column.
    grid = np.stack([*np.meshgrid(np.arange(160), np.arange(160), indexing="ij"), np.zeros((160, 160))], -1).astype(np.uint8)
    sides, corners = set(), set()
    for seed in range(400):
        crop = augment.multi_scale_crop(grid[None], 160, (1.0, 0.875, 0.75, 0.66), np.random.default_rng(seed))[0].astype(float)
        top, left = crop[0, :, 0].mean(), crop[:, 0, 1].mean()
        height, width = crop[-1, :, 0].mean() - top + 1, crop[:, -1, 1].mean() - left + 1
        sides.add((round(height), round(width)))
        corners.add((round(top), round(left)))
    expected = {160, 140, 120, 105}
    assert {side for pair in sides for side in pair} == expected
    order = sorted(expected, reverse=True)
    assert all(abs(order.index(high) - order.index(wide)) <= 1 for high, wide in sides)
    assert len(sides) == 10
    assert (0, 0) in corners
    assert max(top for top, _ in corners) == 4 * ((160 - 105) // 4)


def test_every_frame_of_a_clip_is_changed_alike() -> None:
    for seed in range(20):
        clip = rand_augment(still_clip(), POLICY, ("test", seed))
        assert all(np.array_equal(clip[0], frame) for frame in clip)
    config = AugmentConfig(random_erasing=0.0, flip=True)
    for seed in range(20):
        video = augmented(still_clip(), config, seed)
        assert all(torch.equal(video[:, 0], video[:, frame]) for frame in range(4))


def test_rand_augment_depends_on_its_seed_and_leaves_the_global_state_alone() -> None:
    before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # noqa: NPY002
    first, again, other = (rand_augment(still_clip(), POLICY, ("test", seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_rand_augment_is_timms_up_to_rounding() -> None:
    policy = "rand-m7-n1-mstd0.5-inc1-p1.0"
    options = {"translate_const": 72, "interpolation": Image.Resampling.BILINEAR}
    frame = picture(160)
    inside = np.zeros((160, 160), bool)
    differences = []
    for seed in range(60):
        with seeded("test", seed):
            expected = np.asarray(rand_augment_transform(policy, options)(Image.fromarray(frame)), dtype=int)
        found = rand_augment(frame[None], policy, ("test", seed))[0].astype(int)
        inside[:] = True
        inside[(expected == 128).all(-1) | (found == 128).all(-1)] = False  # the edge of what comes in from outside
        differences.append(np.abs(found - expected)[inside])
        assert differences[-1].mean() < 1.5
    assert np.median(np.concatenate(differences)) <= 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_equals_timms(name: str) -> None:
    difference = difference_from_timm(name, Image.Resampling.BILINEAR)
    assert np.quantile(difference, 0.9) <= 2
    assert difference.mean() < 1.5


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_bicubic_interpolation_equals_timms(name: str) -> None:
    assert difference_from_timm(name, Image.Resampling.BICUBIC).max() == 0
    bilinear = np.stack([rand_augment(still_clip(), POLICY, ("test", seed), "bilinear") for seed in range(6)])
    drawn = np.stack([rand_augment(still_clip(), POLICY, ("test", seed), "random") for seed in range(6)])
    assert not np.array_equal(bilinear, drawn)


def test_a_drawn_interpolation_is_the_one_that_timm_draws() -> None:
    differences = [difference_from_timm("Rotate", INTERPOLATIONS["random"], seed) for seed in range(8)]
    exact = sum(difference.max() == 0 for difference in differences)
    assert 0 < exact < 8  # the bicubic ones
    assert max(difference.mean() for difference in differences) < 1.5


def difference_from_timm(name: str, interpolation: object, seed: int = 0) -> np.ndarray:
    """By how much a picture changed by us differs from one changed by timm; the second frame stands on its head."""
    frame = picture(96)
    operation = AugmentOp(name, prob=1.0, magnitude=7, hparams={"interpolation": interpolation})
    with seeded("test", seed):
        expected = np.asarray(operation(Image.fromarray(frame)), dtype=int)
    operation.aug_fn = OPERATIONS[name]
    with seeded("test", seed):
        found = operation(np.stack([frame, frame[::-1]]))
    assert found.shape == (2, 96, 96, 3)
    assert found.dtype == np.uint8
    return np.abs(found[0].astype(int) - expected)


def test_a_policy_that_timm_refuses_is_named() -> None:
    with pytest.raises(UsageError, match=r"augment.rand_augment = 'much': timm refuses it"):
        rand_augment(still_clip(), "much", ("test",))


def test_erasing_overwrites_one_box_in_all_frames_with_noise() -> None:
    for seed in range(50):
        ending = augment.erasing(4, 60, False, np.random.default_rng(seed))
        video, before = torch.empty(3, 4, 60, 60), torch.empty(3, 4, 60, 60)
        finish.finish_clip(still_clip(4, 60), ending, video)
        finish.finish_clip(still_clip(4, 60), finish.Ending(), before)
        erased = video != before
        rows, columns = erased[0, 0].any(1).nonzero().flatten(), erased[0, 0].any(0).nonzero().flatten()
        box = torch.zeros(60, 60, dtype=torch.bool)
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert torch.equal(erased, box.expand_as(erased))
        assert 0.01 < box.float().mean() < 0.36
    assert video[erased].mean().abs() < 0.3
    assert video[erased].std() == pytest.approx(1, abs=0.1)


def test_a_batch_finished_at_once_equals_its_clips_bit_by_bit() -> None:
    config = AugmentConfig(flip=True, random_erasing=0.5)
    frames = [np.stack([picture(64, seed)] * 4) for seed in range(12)]
    made = [augment.augment(clip, 64, config, np.random.default_rng(seed), ("test", seed)) for seed, clip in enumerate(frames)]
    endings = [ending for _, ending in made]
    assert {ending.flipped for ending in endings} == {ending.noise is None for ending in endings} == {True, False}
    packed = finish.packed([clip for clip, _ in made], endings)
    assert packed["video"].dtype == torch.uint8
    finished = finish.finish_batch({**packed, "sample_id": ["a"]}, torch.device("cpu"))
    assert set(finished) == {"video", "sample_id"}
    for row, (clip, ending) in zip(finished["video"], made, strict=True):
        video = torch.empty(3, 4, 64, 64)
        finish.finish_clip(clip, ending, video)
        assert torch.equal(row, video)


def test_a_random_resized_crop_is_the_releases_box() -> None:
    grid = np.stack([*np.meshgrid(np.arange(160), np.arange(160), indexing="ij"), np.zeros((160, 160))], -1).astype(np.uint8)
    areas, shapes = [], []
    for seed in range(400):
        crop = augment.random_resized_crop(grid[None], 160, (0.08, 1.0), np.random.default_rng(seed))[0].astype(float)
        height, width = np.ptp(crop[..., 0]) + 1, np.ptp(crop[..., 1]) + 1
        areas.append(height * width / 160**2)
        shapes.append(width / height)
    assert 0.07 < min(areas) < 0.12
    assert 0.85 < max(areas) <= 1
    assert 0.72 < min(shapes) < 0.8 < 1.25 < max(shapes) < 1.4
    whole = augment.random_resized_crop(grid[None, :40], 160, (1.0, 1.0), np.random.default_rng(0))  # no box fits 4:1
    assert np.ptp(whole[0, ..., 1].astype(int)) in (38, 39)


def test_the_crop_of_the_configuration_is_used() -> None:
    plain = AugmentConfig(rand_augment="", random_erasing=0.0, crop="multi_scale", crop_scales=(1.0,), flip=False)
    other = AugmentConfig(rand_augment="", random_erasing=0.0, crop="random_resized", crop_area=(0.1, 0.2))
    assert torch.equal(augmented(still_clip(), plain), normalised(still_clip()))
    assert not torch.equal(augmented(still_clip(), other), normalised(still_clip()))


def test_side_crops_are_left_middle_and_right() -> None:
    frames = np.broadcast_to(np.arange(80, dtype=np.uint8)[:, None], (1, 64, 80, 3))
    crops = [augment.side_crop(frames, side) for side in range(3)]
    assert {crop.shape for crop in crops} == {(1, 56, 56, 3)}
    assert [int(crop[0, 0, 0, 0]) for crop in crops] == [0, 12, 24]


def test_the_gain_is_between_a_half_and_one_and_a_half() -> None:
    random = np.random.default_rng(0)
    gains = [augment.gain(random) for _ in range(2000)]
    assert 0.5 < min(gains) < 0.75
    assert 1.25 < max(gains) < 1.5
    assert np.mean(gains) == pytest.approx(1.0, abs=0.01)
