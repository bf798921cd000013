"""Clips that are part of a longer video: IEMOCAP's utterances in the films of its dialogues."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from media_files import grey_frames, write_clip

from hicmae.data import clips, corpora
from hicmae.data.corpora import Tree
from hicmae.data.corpora.base import Part
from hicmae.data.prepare.clip import Settings
from hicmae.data.prepare.part import PartOfVideo
from hicmae.data.prepare.pipeline import prepare
from hicmae.data.synthetic import write_layout
from hicmae.errors import ClipError

EVALUATION = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01M_impro01_F000\tneu\t[2.5, 2.5, 2.5]
[10.0100 - 11.3925]\tSes01M_impro01_M000\thap\t[2.5, 2.5, 2.5]
[12.0000 - 13.0000]\tSes01M_impro01_M001\txxx\t[2.5, 2.5, 2.5]
"""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of 25 frames; the left half is of grey 10, 12, 14, ..., the right half is white."""
    frames = grey_frames(50).copy()
    frames[:, :, 32:] = 255
    return write_clip(tmp_path_factory.mktemp("film") / "film.mp4", frames)


def test_a_part_of_an_avi_with_b_frames_has_the_right_frames(tmp_path: Path) -> None:
    """decord knows no times for some of its frames, and says so with -3e17."""
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"bf": "2", "qscale": "2", "flags": "+qscale"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in grey_frames(75):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    assert [round(float(frame.mean())) for frame in clips.open_frames(path).read([74, 10])] == [158, 30]
    part = PartOfVideo(Part(path, 0.4, 1.6, "left"))
    shades = [round(float(frame.mean())) for frame in part.read(range(len(part)))]
    assert len(part) == 30
    assert np.abs(np.array(shades) - np.arange(30, 90, 2)).max() <= 3
    assert np.diff(part.times_s()) == pytest.approx(np.full(30, 0.04), abs=1e-4)


def test_a_part_has_the_frames_that_begin_in_its_time(film: Path) -> None:
    part = PartOfVideo(Part(film, 0.4, 1.0, "left"))
    shades = [round(float(frame.mean())) for frame in part.read(range(len(part)))]
    assert len(part) == 15
    assert np.abs(np.array(shades) - np.arange(30, 60, 2)).max() <= 1
    assert part.read([0])[0].shape == (64, 32, 3)
    assert part.times_s() == pytest.approx(np.arange(16) / 25, abs=1e-5)


def test_the_other_half_shows_the_other_person(film: Path) -> None:
    assert np.stack(PartOfVideo(Part(film, 0, 2, "right")).read([0, 49])).mean() > 250


def test_a_part_beyond_the_end_is_one_line(film: Path) -> None:
    with pytest.raises(ClipError, match=r"film.mp4: no frames from 5 to 6 s; the video ends at 2 s"):
        PartOfVideo(Part(film, 5, 6, "left"))


def test_who_wears_the_markers_is_on_the_left() -> None:
    evaluation, film = "Session1/dialog/EmoEvaluation/Ses01M_impro01.txt", "Session1/dialog/avi/DivX/Ses01M_impro01.avi"
    iemocap, tree = corpora.get("iemocap"), Tree.of([film], {evaluation: EVALUATION}, Path("/data"))
    assert iemocap.parts is not None
    assert iemocap.parts(tree) == {
        "Ses01M_impro01_F000": Part(Path("/data") / film, 6.2901, 8.2357, "right"),
        "Ses01M_impro01_M000": Part(Path("/data") / film, 10.01, 11.3925, "left"),
    }
    assert iemocap.parts(Tree.of([], {evaluation: EVALUATION}, Path("/data"))) == {}


def test_prepare_cuts_the_utterances_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_layout("iemocap", tmp_path / "data/iemocap", seconds=1.0, size_px=160)
    monkeypatch.setenv("HICMAE_DATA", str(root.parent))
    corpora.get.cache_clear()
    summary = prepare("iemocap", tmp_path / "out", Settings(), jobs=1, limit=3, on_error="skip")
    assert len(summary.found) == 3
    for found in summary.found.values():
        assert 29 <= found.frames <= 30  # a second at 29.97
        assert (found.reason, found.most_faces) == ("", 1)  # one half, one person
    for sample in corpora.get(f"csv:{summary.manifest}").samples(tmp_path):
        assert sample.video is not None and len(clips.open_frames(sample.video)) in (29, 30)
