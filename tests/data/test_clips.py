"""Reading media files of every kind that corpora hold, and what is said about those that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import copied, grey_frames, index_in_front, tone, write_clip
from PIL import Image

from hicmae.data import clips
from hicmae.errors import ClipError


def shades(frames: list[np.ndarray]) -> list[int]:
    return [round(float(frame.mean())) for frame in frames]


def pitch_hz(wave: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(wave.astype(np.float64)))
    return float(spectrum[1:].argmax() + 1) * clips.SAMPLE_RATE_HZ / len(wave)


def refusal(use: object, path: Path) -> str:
    with pytest.raises(ClipError) as caught:
        use(path)  # type: ignore[operator]
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_frames_come_by_number_and_in_the_order_asked_for(tmp_path: Path) -> None:
    reader = clips.open_frames(write_clip(tmp_path / "a.mp4", grey_frames(30)))
    assert len(reader) == 30
    assert shades(reader.read([20, 3, 3])) == pytest.approx([50, 16, 16], abs=2)
    assert shades(list(clips.all_frames(reader))) == pytest.approx([10 + 2 * number for number in range(30)], abs=2)
    times = reader.times_s()
    assert times is not None
    assert times == pytest.approx(np.arange(31) / 25, abs=1e-3)


@pytest.mark.parametrize("width", [64, 72, 48, 24, 16, 2])  # all but the first are of those that decord pads
def test_decord_and_pyav_see_the_same_pixels(tmp_path: Path, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 48, width, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "noise.mp4", noise)
    with av.open(str(path)) as container:
        independent = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert clips.open_frames(path).read([7])[0].shape == (48, width, 3)
    for ours, theirs in zip(clips.all_frames(clips.open_frames(path)), independent, strict=True):
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_a_folder_of_pictures_is_read_by_name(tmp_path: Path) -> None:
    for number, suffix in ((2, "png"), (10, "jpg"), (1, "bmp")):
        Image.new("RGB", (20, 12), (number * 10,) * 3).save(tmp_path / f"frame_{number:03d}.{suffix}")
    (tmp_path / "notes.txt").write_text("not a picture")
    reader = clips.open_frames(tmp_path)
    assert (len(reader), reader.times_s()) == (3, None)
    assert shades(reader.read([0, 1, 2])) == pytest.approx([10, 20, 100], abs=2)
    assert clips.probe(tmp_path) == clips.Probe(width=20, height=12, frames=3)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", [".wav", ".m4a", ".mp4"])
def test_sound_of_any_rate_and_channels_becomes_16_khz_mono(tmp_path: Path, rate_hz: int, channels: int, suffix: str) -> None:
    path = write_clip(tmp_path / f"a{suffix}", None, tone(1.0, rate_hz, 300.0), rate_hz, channels=channels)
    wave = clips.read_sound(path)
    assert wave.dtype == np.int16
    assert len(wave) / clips.SAMPLE_RATE_HZ == pytest.approx(1.0, abs=0.2)  # AAC pads
    assert pitch_hz(wave[2000:14000]) == pytest.approx(300, abs=2)
    assert np.abs(wave[4000:12000]).max() / 32768 == pytest.approx(0.5, abs=0.08)  # AAC at 8 kHz overshoots


def test_16_khz_16_bit_sound_is_taken_bit_by_bit(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.9, 0.9, 20000).astype(np.float32)
    wave = clips.read_sound(write_clip(tmp_path / "a.wav", None, sound))
    assert np.array_equal(wave, (sound * 32767).round().astype(np.int16))


def test_stereo_is_averaged(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    left, right = np.full(4000, 8000, np.int16), np.full(4000, -2000, np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([left, right], 1).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert set(clips.read_sound(path).tolist()) == {3000}


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0, 1, 2, 10, 11, 30]
    reader = clips.open_frames(write_clip(tmp_path / "vfr.mp4", grey_frames(6), times=times))
    assert len(reader) == 6
    found = reader.times_s()
    assert found is not None
    assert found[:6] == pytest.approx(np.array(times) / 25, abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(63, 65), (18, 22), (16, 400)])
def test_odd_sizes(tmp_path: Path, height: int, width: int) -> None:
    reader = clips.open_frames(write_clip(tmp_path / "odd.mp4", grey_frames(4, height, width)))
    assert reader.read([3])[0].shape == (height, width, 3)


def test_one_frame(tmp_path: Path) -> None:
    reader = clips.open_frames(write_clip(tmp_path / "one.mp4", grey_frames(1)))
    assert len(reader) == 1
    assert shades(reader.read([0, 0])) == pytest.approx([10, 10], abs=2)


def test_names_with_spaces_and_unicode(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "mit Leerzeichen" / "Gefühl 感情 😀.mp4", grey_frames(3), tone(0.5, 16000))
    assert len(clips.open_frames(path)) == 3
    assert len(clips.read_sound(path)) > 0
    assert clips.probe(path).width == 64


def test_probe_reads_streams_without_decoding(tmp_path: Path) -> None:
    facts = clips.probe(write_clip(tmp_path / "a.mp4", grey_frames(50), tone(2.5, 44100), 44100, channels=2))
    assert (facts.width, facts.height, facts.frames, facts.fps) == (64, 64, 50, 25.0)
    assert (facts.sample_rate_hz, facts.channels) == (44100, 2)
    assert facts.video_s == pytest.approx(2.0, abs=0.05)
    assert facts.sound_s == pytest.approx(2.5, abs=0.05)


def test_missing_empty_and_foreign_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for use in (clips.open_frames, clips.read_sound, clips.probe):
        assert refusal(use, tmp_path / "nowhere.mp4") == "missing"
        (tmp_path / "empty.mp4").touch()
        assert refusal(use, tmp_path / "empty.mp4") == "empty file"
        (tmp_path / "text.mp4").write_text("this is no film" * 100)
        assert "not a media file (Invalid data found when processing input)" in refusal(use, tmp_path / "text.mp4")
    assert capfd.readouterr() == ("", "")  # decord's own words


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_is_cut_off(tmp_path: Path, share: float) -> None:
    whole = write_clip(tmp_path / "whole.mp4", grey_frames(50), tone(2, 16000)).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: int(len(whole) * share)])
    for use in (clips.open_frames, clips.read_sound, clips.probe):
        assert "cut off, damaged" in refusal(use, path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder that may not be entered, by root neither."""
    user, mode = os.geteuid(), folder.stat().st_mode
    folder.chmod(0)
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(mode)


def test_a_path_that_may_not_or_cannot_be_looked_at(tmp_path: Path) -> None:
    hidden = write_clip(tmp_path / "locked" / "a.mp4", grey_frames(2)).parent
    for use in (clips.open_frames, clips.read_sound, clips.probe):
        with locked(hidden):
            assert refusal(use, hidden / "a.mp4") == "unreadable (Permission denied)"
        assert refusal(use, tmp_path / f"{'n' * 300}.mp4") == "unreadable (File name too long)"
    (tmp_path / "frames").mkdir()
    tmp_path.chmod(0o711)
    with locked(tmp_path / "frames"):
        assert "Permission denied" in refusal(clips.open_frames, tmp_path / "frames")


def broken_off(path: Path, whole: Path) -> tuple[Path, int]:
    """The clip with its index at the front, cut off in the middle of a piece of sound; and the frames before that."""
    front = index_in_front(whole)
    with av.open(str(front)) as container:
        packets = sorted((packet.pos, packet.stream.type) for packet in container.demux() if packet.size)
    cut = [number for number, (_, kind) in enumerate(packets) if kind == "audio"][8]
    path.write_bytes(front.read_bytes()[: packets[cut][0] + 20])
    return path, sum(kind == "video" for _, kind in packets[:cut])


def undecodable(path: Path) -> str:
    return refusal(lambda place: list(clips.all_frames(clips.open_frames(place))), path)


def test_why_frames_cannot_be_decoded_is_said_in_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    whole = write_clip(tmp_path / "whole.mp4", noise, tone(1.6, 16000))
    reason = "frames cannot be decoded; the file is cut off or damaged"
    cut, frames = broken_off(tmp_path / "cut.mp4", whole)
    assert undecodable(cut) == f"{reason} ({frames} of 40 frames are there)" and frames > 5
    data = bytearray(whole.read_bytes())
    start = data.find(b"mdat") + 4
    data[start : start + len(data) // 2] = bytes(len(data) // 2)
    (tmp_path / "zeros.mp4").write_bytes(data)
    assert undecodable(tmp_path / "zeros.mp4") == f"{reason} (Invalid data found when processing input)"
    assert capfd.readouterr() == ("", "")


def test_a_file_cut_off_between_two_frames_is_no_shorter_clip(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    front = index_in_front(write_clip(tmp_path / "whole.mp4", noise))
    with av.open(str(front)) as container:
        starts = sorted(packet.pos for packet in container.demux() if packet.size)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(front.read_bytes()[: starts[25]])
    assert refusal(clips.open_frames, cut) == "25 of 40 frames are there; the file is cut off or damaged"


def test_a_video_that_shows_a_part_of_its_frames_is_whole(tmp_path: Path) -> None:
    """As a cut without encoding anew leaves it: the index has all frames, an edit list says which are shown."""
    path = write_clip(tmp_path / "whole.mp4", grey_frames(150))
    data = bytearray(path.read_bytes())
    ticks, place = 1000, data.find(b"elst")
    assert place > 0 and int.from_bytes(data[place + 12 : place + 16], "big") == 6 * ticks
    for name, offset in ((b"elst", 12), (b"tkhd", 24), (b"mvhd", 20), (b"mdhd", 20)):
        at = data.find(name) + offset
        length = int.from_bytes(data[at : at + 4], "big")
        data[at : at + 4] = (length // 3).to_bytes(4, "big")
    path.write_bytes(data)
    assert shades(clips.open_frames(path).read([0, 49])) == [10, 108]


def test_words_in_another_encoding_do_not_matter(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "a.mp4", grey_frames(20), tone(0.8, 16000))
    path = copied(whole, tmp_path / "tagged.mp4", title="Gefuehl")
    path.write_bytes(path.read_bytes().replace(b"Gefuehl", b"Gef\xfc\xfchl"[:7]))
    with pytest.raises(UnicodeDecodeError), av.open(str(path)):
        pass
    assert len(clips.open_frames(path)) == 20
    assert len(clips.read_sound(path)) and clips.probe(path).frames == 20


def test_frames_that_are_overwritten_are_refused_or_decoded_but_never_missing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "damaged.mp4", noise)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 5000] = bytes(5000)
    path.write_bytes(data)
    try:
        assert len(list(clips.all_frames(clips.open_frames(path)))) == 30
    except ClipError as error:
        assert str(path) in str(error)


def test_a_stream_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(clips.read_sound, write_clip(tmp_path / "silent.mp4", grey_frames(3))) == "no sound stream"
    assert refusal(clips.open_frames, write_clip(tmp_path / "blind.mp4", None, tone(1, 16000))) == "no video stream"
    (tmp_path / "frames").mkdir()
    assert "no frames" in refusal(clips.open_frames, tmp_path / "frames")


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.064])
def test_sound_of_no_length(tmp_path: Path, seconds: float) -> None:
    path = write_clip(tmp_path / "short.wav", None, tone(seconds, 16000))
    assert "too short" in refusal(clips.read_sound, path) or seconds == 0.0


@pytest.mark.recordings
def test_real_recordings(recordings: Path) -> None:
    for path in sorted(recordings.glob("*/*.mp4")):
        facts = clips.probe(path)
        reader = clips.open_frames(path)
        assert len(reader) == facts.frames
        assert reader.read([len(reader) - 1])[0].shape == (facts.height, facts.width, 3)
        if facts.sample_rate_hz is None:
            assert refusal(clips.read_sound, path) == "no sound stream"
        else:
            assert len(clips.read_sound(path)) / 16000 == pytest.approx(facts.sound_s, abs=0.1)
    for path in sorted(recordings.glob("ravdess_audio/Actor_01/*.wav")):
        assert len(clips.read_sound(path)) == round(clips.probe(path).sound_s * 16000)
