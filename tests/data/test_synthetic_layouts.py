"""Small corpora in the layouts of the published ones: read back by the corpora themselves, in the formats distributed."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import pytest

from hicmae.data import corpora
from hicmae.data.synthetic import LAYOUTS, write_layout
from hicmae.errors import HicmaeError, UsageError

# Corpus: layout, samples, classes in the test part of every fold (0: regression or unlabelled).
EXPECTED = {
    "crema_d": ("crema_d", 30, 6),
    "crema_d_4": ("crema_d", 20, 4),
    "ravdess": ("ravdess", 48, 8),
    "msp_improv": ("msp_improv", 24, 4),
    "iemocap": ("iemocap", 25, 4),
    "mafw": ("mafw", 55, 11),
    "mafw_43": ("mafw", 87, None),  # a compound label has one clip, so it is in one fold's test part
    "dfew": ("dfew", 35, 7),
    "mer_multi": ("mer_multi", 18, 6),
    "werewolf_xl": ("werewolf_xl", 40, 0),
    "avcaffe": ("avcaffe", 40, 5),
    "avcaffe_valence": ("avcaffe", 40, 5),
    "voxceleb2": ("voxceleb2", 12, 0),
    "synthetic": ("synthetic", 24, 4),
}


pytestmark = pytest.mark.xdist_group("layouts")  # each is written once


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layouts as they are asked for, each written once."""
    place = tmp_path_factory.mktemp("layouts")

    class Written(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = write_layout(name, place / name, seconds=0.6)
            return self[name]

    return Written()


def test_every_layout_is_read_by_a_corpus() -> None:
    assert {layout for layout, _, _ in EXPECTED.values()} == set(LAYOUTS)
    assert set(EXPECTED) <= set(corpora.names())


@pytest.mark.parametrize("name", EXPECTED)
def test_the_corpus_reads_its_layout(name: str, written: dict[str, Path]) -> None:
    layout, count, classes = EXPECTED[name]
    corpus = corpora.get(name)
    samples = corpus.samples(written[layout])
    assert len(samples) == count
    for fold in corpus.folds:
        held = [sample for sample in samples if fold in sample.test_folds]
        assert held
        assert len(held) < count
        assert {sample.group for sample in held}.isdisjoint(sample.group for sample in samples if fold not in sample.test_folds)
        if classes:
            assert {sample.label for sample in held} == set(range(classes))
    if corpus.classes:
        assert {sample.label for sample in samples} == set(range(len(corpus.classes)))


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_all_media_of_the_samples_can_be_decoded(name: str, written: dict[str, Path]) -> None:
    for sample in corpora.get(name).samples(written[name]):
        assert sample.audio is not None
        with av.open(str(sample.audio)) as container:
            heard = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
        assert 0.55 < heard < 0.75
        if sample.video is None:
            assert name == "iemocap"  # which has pictures of whole dialogues only
        elif sample.video.is_dir():
            assert len(list(sample.video.glob("*.jpg"))) == 15
        else:
            with av.open(str(sample.video)) as container:
                assert sum(1 for _ in container.decode(video=0)) in (15, 18)


@pytest.mark.parametrize(
    ("name", "file", "video", "audio", "fps"),
    [
        ("crema_d", "VideoFlash/1001_IEO_ANG_XX.flv", "flv", "mp3", Fraction(30000, 1001)),
        ("crema_d", "AudioWAV/1001_IEO_ANG_XX.wav", None, "pcm_s16le", None),
        ("ravdess", "Actor_01/02-01-01-01-01-01-01.mp4", "h264", None, Fraction(30000, 1001)),
        ("ravdess", "Actor_24/01-01-08-01-01-01-24.mp4", "h264", "aac", Fraction(30000, 1001)),
        ("msp_improv", "session2/S01A/P/MSP-IMPROV-S01A-F02-P-FM01.avi", "mpeg4", "mp3", Fraction(30000, 1001)),
        ("iemocap", "Session1/dialog/avi/DivX/Ses01F_impro01.avi", "mpeg4", "mp3", Fraction(30000, 1001)),
        ("voxceleb2", "mp4/id00012/21Uxsk56VDQ/00001.mp4", "h264", None, Fraction(25)),
        ("voxceleb2", "aac/id00012/21Uxsk56VDQ/00001.m4a", None, "aac", None),
    ],
)
def test_files_have_the_formats_that_are_distributed(
    written: dict[str, Path], name: str, file: str, video: str | None, audio: str | None, fps: Fraction | None
) -> None:
    with av.open(str(written[name] / file)) as container:
        pictures, sounds = container.streams.video, container.streams.audio
        assert (pictures[0].codec_context.name.replace("flv1", "flv") if pictures else None) == video
        assert (sounds[0].codec_context.name.removesuffix("float") if sounds else None) == audio
        if fps:
            assert float(pictures[0].average_rate) == pytest.approx(float(fps), rel=0.002)
        if name == "voxceleb2" and pictures:
            assert (pictures[0].width, pictures[0].height) == (224, 224)


def test_ravdess_sound_files_have_48_khz(written: dict[str, Path]) -> None:
    with av.open(str(written["ravdess"] / "Actor_01/03-01-01-01-01-01-01.wav")) as container:
        assert container.streams.audio[0].rate == 48_000


def test_an_iemocap_dialogue_shows_both_actors_and_lists_when_they_speak(written: dict[str, Path]) -> None:
    session = written["iemocap"] / "Session1"
    with av.open(str(session / "dialog/avi/DivX/Ses01F_impro01.avi")) as container:
        stream = container.streams.video[0]
        assert stream.width == 2 * stream.height
    lines = (session / "dialog/EmoEvaluation/Ses01F_impro01.txt").read_text().splitlines()
    assert lines[0] == "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"
    assert lines[2] == "[0.0000 - 0.6000]\tSes01F_impro01_F000\tang\t[2.0000, 4.0000, 3.0000]"


def test_the_same_call_writes_the_same_bytes(written: dict[str, Path], tmp_path: Path) -> None:
    def digests(root: Path) -> dict[str, str]:
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert digests(write_layout("crema_d", tmp_path, seconds=0.6)) == digests(written["crema_d"])


def test_an_unknown_layout_names_the_known_ones_nearest_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown layout 'crema'; valid, nearest first: crema_d, "):
        write_layout("crema", tmp_path)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        write_layout("crema_d", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HicmaeError, match="cannot write the generated clips"):
        write_layout("crema_d", tmp_path / "file" / "corpus")
