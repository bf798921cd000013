"""Following one person through a clip and cutting the square around the face, against known truth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hicmae.data import clips
from hicmae.data.prepare.crop import inside, square, squares, write_sound, write_video
from hicmae.data.prepare.faces import Face, detector
from hicmae.data.prepare.track import Look, follow, longest_gap, smooth
from hicmae.data.synthetic.clip import Take, pictures

WIDTH, HEIGHT, FPS = 320, 240, 25.0


def face(x: float, y: float = 120.0, size: float = 60.0, angle: float = 0.0) -> Face:
    return Face(x, y, size, angle, 0.99)


def looks_at(*rows: list[Face], every: int = 5) -> list[Look]:
    return [Look(number * every, faces) for number, faces in enumerate(rows)]


def xs(path: list[tuple[int, Face]]) -> list[float]:
    return [found.x for _, found in path]


def test_the_larger_of_two_people_is_followed_from_beginning_to_end() -> None:
    looks = looks_at(*[[face(80, size=40), face(230, size=60)] for _ in range(20)])
    assert xs(follow(looks, WIDTH, HEIGHT)) == [230] * 20


def test_of_two_equally_large_people_the_one_in_the_middle_is_followed() -> None:
    looks = looks_at(*[[face(40), face(170)] for _ in range(5)])
    assert xs(follow(looks, WIDTH, HEIGHT)) == [170] * 5


def test_a_person_who_is_missed_for_a_while_is_not_exchanged_for_another() -> None:
    both, other = [face(80, size=30), face(230, size=60)], [face(80, size=30)]
    path = follow(looks_at(*[both] * 6, *[other] * 7, *[both] * 6), WIDTH, HEIGHT)
    assert xs(path) == [230] * 12
    assert longest_gap(path, 91) == 39  # frames 26 to 64: the sixth look is at 25, the fourteenth at 65


def test_people_of_like_size_who_alternate_in_front_do_not_make_the_track_jump() -> None:
    rows = [[face(100, size=58 + 4 * (number % 2)), face(220, size=60)] for number in range(30)]
    assert len(set(xs(follow(looks_at(*rows), WIDTH, HEIGHT)))) == 1


def test_one_large_false_find_is_passed_over() -> None:
    rows = [[face(150, size=50)] for _ in range(10)]
    rows[4] = [face(280, 30, size=110), face(150, size=50)]
    assert xs(follow(looks_at(*rows), WIDTH, HEIGHT)) == [150] * 10


def test_after_a_cut_to_another_person_the_crop_changes_at_once_and_not_gradually() -> None:
    path = follow(looks_at(*[[face(90)]] * 10, *[[face(240)]] * 10), WIDTH, HEIGHT)
    track = smooth(path, 96, FPS)
    assert set(np.round(track[:, 0], 6)) == {90.0, 240.0}
    assert int(np.argmax(track[:, 0] > 100)) in range(46, 50)  # between the looks at 45 and 50


def test_no_faces_give_no_path() -> None:
    assert follow(looks_at([], [], []), WIDTH, HEIGHT) == []
    assert follow([], WIDTH, HEIGHT) == []


def test_a_gap_is_bridged_in_a_straight_line_and_the_ends_stand_still() -> None:
    path = [(10, face(100)), (15, face(100)), (20, face(100)), (80, face(160)), (85, face(160)), (90, face(160))]
    track = smooth(path, 101, FPS)
    assert track.shape == (101, 4)
    np.testing.assert_allclose(track[[0, 5], 0], 100, atol=1e-3)
    np.testing.assert_allclose(track[[95, 100], 0], 160, atol=1e-3)
    np.testing.assert_allclose(track[30:70, 0], np.interp(np.arange(30, 70), [20, 80], [100, 160]), atol=0.01)


def test_a_head_that_turns_past_a_half_circle_is_not_turned_back() -> None:
    angles = np.linspace(3.0, 3.4, 21)  # atan2 goes from pi to -pi on the way
    path = [(5 * n, face(100, angle=math.atan2(math.sin(a), math.cos(a)))) for n, a in enumerate(angles)]
    assert np.abs(np.diff(smooth(path, 101, FPS)[:, 3])).max() < 0.01


def test_a_single_find_that_is_off_by_half_a_face_moves_nothing() -> None:
    path = [(5 * n, face(180 if n == 7 else 150)) for n in range(20)]
    assert np.abs(smooth(path, 96, FPS)[:, 0] - 150).max() < 1e-6


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 200))
def test_smoothing_removes_the_detectors_jitter_and_keeps_the_movement(seed: int, every: int, frame_count: int) -> None:
    rng = np.random.default_rng(seed)
    frames = np.arange(frame_count)
    true_x = 160 + 40 * np.sin(2 * np.pi * frames / FPS / 3)  # to and fro in three seconds
    looks = sorted({*range(0, frame_count, every), frame_count - 1})
    noise = rng.uniform(-1.5, 1.5, (frame_count, 3))
    path = [(n, face(true_x[n] + noise[n, 0], 120 + noise[n, 1], 60 + 2 * noise[n, 2])) for n in looks]
    track = smooth(path, frame_count, FPS)
    assert track.shape == (frame_count, 4)
    assert np.abs(track[:, 0] - true_x).max() < 6  # a tenth of the face
    raw = np.asarray([found[:3] for _, found in path])
    if every == 1 and frame_count > 20:
        assert np.abs(np.diff(track[:, :3], 2, axis=0)).mean() < 0.2 * np.abs(np.diff(raw, 2, axis=0)).mean()


@given(st.floats(-50, 400), st.floats(-50, 300), st.floats(1, 500))
def test_the_square_lies_in_the_frame_and_moves_no_further_than_it_must(x: float, y: float, side: float) -> None:
    new_x, new_y, new_side = inside(x, y, side, WIDTH, HEIGHT)
    half = new_side / 2
    assert new_x - half >= -1e-9 and new_x + half <= WIDTH + 1e-9 and new_y - half >= -1e-9 and new_y + half <= HEIGHT + 1e-9
    assert new_side == min(side, HEIGHT)
    if half <= x <= WIDTH - half:
        assert new_x == x


def ramp() -> clips.Frames:
    """Red says the column, green the row."""
    rows, columns = np.mgrid[0:HEIGHT, 0:256]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)


@pytest.mark.parametrize(("side", "size_px"), [(64, 64), (64, 160), (200, 64), (33, 32)])
def test_every_pixel_of_a_crop_comes_from_its_place_in_the_frame(side: int, size_px: int) -> None:
    cut = square(ramp(), 110.0, 104.0, side, 0.0, size_px).astype(float)
    places = (np.arange(size_px) + 0.5) * side / size_px - 0.5  # middles of the pixels, in pixels of the square's source
    np.testing.assert_allclose(cut[size_px // 2, :, 0], 110 - side / 2 + places, atol=1.01)
    np.testing.assert_allclose(cut[:, size_px // 2, 1], 104 - side / 2 + places, atol=1.01)


def test_a_square_of_the_frame_itself_is_the_frame() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(square(frame, 32, 32, 64, 0.0, 64), frame)


def test_alignment_brings_the_eyes_level() -> None:
    angle, frame = 0.4, np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for side in (-30, 30):
        x, y = 160 + side * math.cos(angle), 120 + side * math.sin(angle)
        frame[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3] = 255
    track = np.asarray([[160.0, 120.0, 100.0, angle]])
    level, tilted = (next(squares([frame], track, 100, 0.0, align))[:, :, 0].astype(float) for align in (True, False))
    rows = np.arange(100)
    heights = [[(half.sum(1) @ rows) / half.sum() for half in (cut[:, :50], cut[:, 50:])] for cut in (level, tilted)]
    assert abs(heights[0][0] - heights[0][1]) < 1
    assert heights[1][1] - heights[1][0] == pytest.approx(60 * math.sin(angle), abs=1.5)


def test_a_drawn_face_that_moves_over_the_picture_stays_in_the_middle_of_the_crop() -> None:
    drawn = [pictures(Take(0, speaker, 0, 0, 1, 0.04, 96))[0] for speaker in range(12)]
    scores = [max((face.score for face in detector().faces(picture)), default=0.0) for picture in drawn]
    lefts = np.linspace(20, 190, 50).round().astype(int)
    frames = np.full((len(lefts), HEIGHT, WIDTH, 3), 90, np.uint8)
    for frame, left in zip(frames, lefts, strict=True):
        frame[70:166, left : left + 96] = drawn[int(np.argmax(scores))]
    looks = [Look(number, detector().faces(frames[number])) for number in [*range(0, len(frames), 4), 49]]
    track = smooth(follow(looks, WIDTH, HEIGHT), len(frames), FPS)
    offset = track[:, 0] - lefts
    assert np.abs(offset - np.median(offset)).max() < 0.08 * np.median(track[:, 2])


def test_times_of_frames_survive_also_at_a_variable_rate(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    times_s = np.cumsum([0.0, 0.04, 0.04, 0.2, 0.04, 0.1, 0.04, 0.04, 0.3, 0.04, 0.04, 0.04, 0.04]).astype(np.float32)
    path = tmp_path / "variable.mp4"
    write_video(path, frames, times_s, Fraction(25), 32)
    written = clips.VideoFile(path).times_s()
    np.testing.assert_allclose(written[:-1], times_s[:-1], atol=1e-3)
    assert len(written) == 13


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(50)])
def test_a_written_video_has_the_rate_the_colours_and_the_same_bytes_every_time(tmp_path: Path, fps: Fraction) -> None:
    frames = pictures(Take(0, 2, 0, 0, 1, 1.0, 96))
    times_s = np.arange(len(frames) + 1, dtype=np.float32) / float(fps)
    paths = [tmp_path / "one.mp4", tmp_path / "two.mp4"]
    for path in paths:
        write_video(path, frames, times_s.astype(np.float32), fps, 96)
    facts = clips.probe(paths[0])
    assert facts.fps == pytest.approx(float(fps), rel=1e-3) and facts.frames == len(frames)
    back = np.stack(list(clips.all_frames(clips.VideoFile(paths[0]))))
    assert np.abs(back.astype(float) - frames).mean() < 4 and np.abs(back.mean((0, 1, 2)) - frames.mean((0, 1, 2))).max() < 2
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_sound_is_written_sample_by_sample(tmp_path: Path) -> None:
    samples = np.random.default_rng(2).integers(-32768, 32768, 20000).astype(np.int16)
    write_sound(tmp_path / "a.wav", samples)
    np.testing.assert_array_equal(clips.read_sound(tmp_path / "a.wav"), samples)
    facts = clips.probe(tmp_path / "a.wav")
    assert (facts.sample_rate_hz, facts.channels) == (16000, 1)


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken() -> Iterator[clips.Frames]:
        yield np.zeros((32, 32, 3), np.uint8)
        raise RuntimeError("no more frames")

    with pytest.raises(RuntimeError):
        write_video(tmp_path / "a.mp4", broken(), np.linspace(0, 1, 26, dtype=np.float32), Fraction(25), 32)
    assert list(tmp_path.iterdir()) == []
