"""Changes of frames: alike on all frames of a clip, in bounds, and as the authors' release where that is fixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, rand_augment_transform
from torchvision.transforms.functional import normalize

from hicmae.config import AugmentConfig
from hicmae.data import augment
from hicmae.data.rand_augment import OPERATIONS, rand_augment
from hicmae.errors import UsageError
from hicmae.seeding import seeded

POLICY = "rand-m7-n4-mstd0.5-inc1"


def picture(size: int = 64, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))


def normalised(frames: torch.Tensor) -> torch.Tensor:
    video = torch.empty(3, len(frames), *frames.shape[-2:])
    augment.normalise(frames, video)
    return video


def still_clip(frames: int = 4, size: int = 64) -> np.ndarray:
    return np.stack([picture(size)] * frames)


def test_normalised_equals_torchvision() -> None:
    frames = augment.channels_first(np.stack([picture(seed=seed) for seed in range(3)]))
    expected = normalize(frames.float() / 255, list(augment.IMAGENET_MEAN), list(augment.IMAGENET_STD)).transpose(0, 1)
    assert torch.allclose(normalised(frames), expected, atol=1e-5)


def test_resizing_equals_pillow() -> None:
    frames = still_clip(2, 100)
    expected = np.asarray(Image.fromarray(frames[0]).resize((64, 64), Image.Resampling.BILINEAR), dtype=int)
    found = augment.resized(augment.channels_first(frames), 64)[1].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1


def test_multi_scale_crops_are_those_of_the_release() -> None:
    # A picture whose pixels say where they are: red the row, green the column.
    grid = np.stack([*np.meshgrid(np.arange(160), np.arange(160), indexing="ij"), np.zeros((160, 160))], -1).astype(np.uint8)
    frames = augment.channels_first(grid[None])
    sides, corners = set(), set()
    for seed in range(400):
        crop = augment.multi_scale_crop(frames, 160, (1.0, 0.875, 0.75, 0.66), np.random.default_rng(seed))[0].float()
        top, left = float(crop[0, 0].mean()), float(crop[1, :, 0].mean())
        height, width = float(crop[0, -1].mean()) - top + 1, float(crop[1, :, -1].mean()) - left + 1
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
        video = torch.empty(3, 4, 64, 64)
        augment.augment(still_clip(), video, config, np.random.default_rng(seed), ("test", seed))
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
    frame = picture(96)
    operation = AugmentOp(name, prob=1.0, magnitude=7, hparams={"interpolation": Image.Resampling.BILINEAR})
    with seeded("test"):
        expected = np.asarray(operation(Image.fromarray(frame)), dtype=int)
    operation.aug_fn = OPERATIONS[name]
    with seeded("test"):
        found = operation(np.stack([frame, frame[::-1]]))
    assert found.shape == (2, 96, 96, 3)
    assert found.dtype == np.uint8
    difference = np.abs(found[0].astype(int) - expected)
    assert np.quantile(difference, 0.9) <= 2
    assert difference.mean() < 1.5


def test_a_policy_that_timm_refuses_is_named() -> None:
    with pytest.raises(UsageError, match=r"augment.rand_augment = 'much': timm refuses it"):
        rand_augment(still_clip(), "much", ("test",))


def test_erasing_overwrites_one_box_in_all_frames_with_noise() -> None:
    for seed in range(50):
        video = torch.full((3, 4, 40, 60), 9.0)
        augment.erase(video, np.random.default_rng(seed))
        erased = video != 9.0
        rows, columns = erased[0, 0].any(1).nonzero().flatten(), erased[0, 0].any(0).nonzero().flatten()
        box = torch.zeros(40, 60, dtype=torch.bool)
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert torch.equal(erased, box.expand_as(erased))
        assert 0.01 < box.float().mean() < 0.36
    assert video[erased].mean().abs() < 0.3
    assert video[erased].std() == pytest.approx(1, abs=0.1)


def test_without_changes_a_clip_is_only_normalised() -> None:
    config = AugmentConfig(rand_augment="", crop_scales=(1.0,), random_erasing=0.0)
    frames = still_clip()
    video = torch.empty(3, 4, 64, 64)
    augment.augment(frames, video, config, np.random.default_rng(0), ("test",))
    assert torch.equal(video, normalised(augment.channels_first(frames)))


def test_side_crops_are_left_middle_and_right() -> None:
    frames = torch.arange(80, dtype=torch.uint8).expand(1, 3, 64, 80)
    crops = [augment.side_crop(frames, side) for side in range(3)]
    assert {crop.shape for crop in crops} == {(1, 3, 56, 56)}
    assert [int(crop[0, 0, 0, 0]) for crop in crops] == [0, 12, 24]


def test_the_gain_is_between_a_half_and_one_and_a_half() -> None:
    random = np.random.default_rng(0)
    gains = [augment.gain(random) for _ in range(2000)]
    assert 0.5 < min(gains) < 0.75
    assert 1.25 < max(gains) < 1.5
    assert np.mean(gains) == pytest.approx(1.0, abs=0.01)
