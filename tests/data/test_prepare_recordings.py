"""Faces in real recordings: found, in the middle of the crop, of one person, and still."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hicmae.data import clips
from hicmae.data.prepare.clip import Settings
from hicmae.data.prepare.faces import Face, detector
from hicmae.data.prepare.pipeline import Summary, prepare
from hicmae.data.prepare.track import Look, follow, smooth

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "clips"
pytestmark = [pytest.mark.recordings, pytest.mark.slow, pytest.mark.xdist_group("recordings")]  # its fixtures are made once
SIZE_PX = 160


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Summary]:
    """All recordings with video; the ids are folder and name."""
    folder = tmp_path_factory.mktemp("recordings")
    lines = [
        "sample_id,video,audio",
        *(f"{path.parent.name}/{path.stem},{path},{path}" for path in sorted(RECORDINGS.rglob("*.mp4"))),
    ]
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HICMAE_DATA", str(RECORDINGS))
        yield prepare(f"csv:{folder / 'all.csv'}", folder, Settings(modality="V"))


def crops(summary: Summary, pattern: str = "*/*.mp4", step: int = 9) -> Iterator[tuple[Path, list[clips.Frames]]]:
    for path in sorted((summary.folder / "faces").glob(pattern)):
        reader = clips.VideoFile(path)
        yield path, reader.read(range(0, len(reader), step))


def raw_path(path: Path) -> tuple[list[tuple[int, Face]], list[Look], int, float]:
    """The detector's own finds of the person in every frame."""
    reader = clips.VideoFile(path)
    frames = reader.read(range(len(reader)))
    looks = [Look(number, detector().faces(frame)) for number, frame in enumerate(frames)]
    return follow(looks, frames[0].shape[1], frames[0].shape[0]), looks, len(reader), clips.probe(path).fps or 25.0


def test_a_face_is_found_in_every_recording(prepared: Summary) -> None:
    assert prepared.clips == len(prepared.found) == 31 and prepared.problems == {}
    assert {name: found.rate for name, found in prepared.found.items() if found.rate < 0.95} == {}
    assert sum(found.most_faces > 1 for found in prepared.found.values()) == 1  # the public speech with two people


def test_the_same_detector_finds_the_face_again_in_the_middle_of_the_crop_and_of_steady_size(prepared: Summary) -> None:
    for path, frames in crops(prepared):
        found = [faces[0] for frame in frames if (faces := detector().faces(frame))]
        assert len(found) >= 0.95 * len(frames), path
        places = np.asarray([(face.x, face.y, face.size) for face in found])
        off = np.abs(places[:, :2] / SIZE_PX - 0.5)
        assert np.median(off, axis=0).max() < 0.15 and np.quantile(off, 0.95, axis=0).max() < 0.2, path
        assert np.quantile(places[:, 2], 0.95) < 1.35 * np.quantile(places[:, 2], 0.05), path
        assert 0.55 < np.median(places[:, 2]) / SIZE_PX < 1, path


def test_another_detector_agrees_on_upright_frontal_faces(prepared: Summary) -> None:
    haar = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"))
    for path, frames in [*crops(prepared, "grid/*.mp4"), *crops(prepared, "ravdess*/*.mp4")]:
        boxes = [haar.detectMultiScale(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 1.1, 5, minSize=(60, 60)) for frame in frames]
        found = np.asarray([max(found, key=lambda box: box[2]) for found in boxes if len(found)])  # x, y, width, height
        assert len(found) > 0.7 * len(frames), path
        centre = (found[:, :2] + found[:, 2:] / 2) / SIZE_PX
        assert np.abs(np.median(centre, axis=0) - 0.5).max() < 0.15, path
        assert found[:, 2].std() / found[:, 2].mean() < 0.08, path


@pytest.mark.parametrize("name", ["grid/sbwe5n.mp4", "voxceleb2/00010.mp4", "ravdess/01-01-07-02-02-01-01_1.mp4"])
def test_the_crop_is_far_stiller_than_the_detections_and_yet_follows_the_head(name: str) -> None:
    path, _, frame_count, fps = raw_path(RECORDINGS / name)
    raw = np.asarray([face[:3] for _, face in path])
    track = smooth([look for look in path if look[0] % 5 == 0], frame_count, fps)
    jitter = [np.abs(np.diff(values, 2, axis=0)).mean(0) for values in (raw, track[:, :3])]
    assert (jitter[1] < 0.1 * jitter[0]).all()
    off = np.abs(track[[frame for frame, _ in path], :2] - raw[:, :2]) / np.median(raw[:, 2])
    assert np.quantile(off, 0.95) < 0.1  # of the face's size


def test_of_two_people_the_speaker_alone_is_in_the_crop_all_the_time(prepared: Summary) -> None:
    source = RECORDINGS / "public_speech" / "obama_speech.mp4"
    path, looks, frame_count, _ = raw_path(source)
    assert all(len(look.faces) >= 2 for look in looks) and len(path) == frame_count
    speaker = np.asarray([face.x for _, face in path])
    other = np.asarray([min(face.x for face in look.faces) for look in looks])
    assert speaker.min() > 160 and other.max() < 150  # he stands right of the middle, the other one left
    for _, frames in crops(prepared, "public_speech/obama_speech.mp4"):
        assert all(len(detector().faces(frame)) == 1 for frame in frames)


def test_looking_at_every_tenth_frame_gives_nearly_the_track_of_all() -> None:
    path, _, frame_count, fps = raw_path(RECORDINGS / "voxceleb2" / "741400163.mp4")
    some = [look for look in path if look[0] % 10 == 0 or look[0] == frame_count - 1]
    all_looks, few_looks = (smooth(looks, frame_count, fps) for looks in (path, some))
    assert np.abs(all_looks[:, :3] - few_looks[:, :3]).max() < 0.06 * np.median(all_looks[:, 2])
