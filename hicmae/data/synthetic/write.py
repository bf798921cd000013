"""Media files from pictures and sound, through PyAV (its wheels carry the codecs): no ffmpeg program is needed.

Encoders run on one thread and nothing of the time or the machine goes into a file, so equal input gives equal bytes
with one build of the codecs.
"""

from __future__ import annotations

import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray
from scipy.signal import resample_poly

from hicmae.data.synthetic.script import Array
from hicmae.data.synthetic.voices import SAMPLE_RATE_HZ
from hicmae.whole import written_whole

Frames = NDArray[np.uint8]
BITEXACT = Flags.bitexact


@dataclass(frozen=True)
class Codec:
    """How one kind of file is encoded; the container follows from the file's suffix."""

    container: str
    video: str = ""
    audio: str = ""
    audio_rate_hz: int = SAMPLE_RATE_HZ
    video_options: tuple[tuple[str, str], ...] = ()


# Without B-frames and macroblock trees: x264's look-ahead for them reads memory that it never wrote, and bytes then differ by
# chance (seen with MALLOC_PERTURB_). Without B-frames, too, a frame's place in the file is its time. A key frame every second.
_X264 = (("crf", "18"), ("preset", "veryfast"), ("threads", "1"), ("bf", "0"), ("g", "25"), ("x264-params", "mbtree=0"))
CODECS = {
    ".mp4": Codec("mp4", "libx264", "aac", video_options=_X264),
    ".m4a": Codec("mp4", audio="aac"),
    ".flv": Codec("flv", "flv", "libmp3lame", audio_rate_hz=44_100, video_options=(("qscale", "4"),)),
    ".avi": Codec("avi", "mpeg4", "libmp3lame", audio_rate_hz=44_100, video_options=(("qscale", "3"),)),
}


def write_media(
    path: Path, frames: Frames | None, sound: Array | None, fps: Fraction | int = 25, wav_rate_hz: int = SAMPLE_RATE_HZ
) -> Path:
    """Encode pictures (T, height, width, 3) and sound (M,) at SAMPLE_RATE_HZ; either may be absent. A file is whole or absent.

    The suffix chooses the codecs: .mp4 H.264 and AAC, .m4a AAC, .flv Sorenson Spark and MP3, .avi MPEG-4 and MP3,
    .wav 16-bit PCM (sound alone).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        if path.suffix == ".wav":
            _encode_wav(temporary, np.zeros(0) if sound is None else sound, wav_rate_hz)
        else:
            _encode(temporary, CODECS[path.suffix], frames, sound, fps)
    return path


def _encode(path: Path, codec: Codec, frames: Frames | None, sound: Array | None, fps: Fraction | int) -> None:
    with av.open(str(path), "w", format=codec.container, options={"fflags": "+bitexact"}) as container:
        video = None if frames is None else _video_stream(container, codec, frames, fps)
        audio = None if sound is None else _audio_stream(container, codec)
        if video is not None and frames is not None:
            for picture in frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode(None))
        if audio is not None and sound is not None:
            container.mux(audio.encode(_sound_frame(sound, codec.audio_rate_hz)))
            container.mux(audio.encode(None))


def _encode_wav(path: Path, sound: Array, rate_hz: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.round(resampled(sound, rate_hz) * 32767).astype("<i2").tobytes())


def resampled(sound: Array, rate_hz: int) -> Array:
    """Sound (M,) at SAMPLE_RATE_HZ to `rate_hz`, within -1 to 1."""
    ratio = Fraction(rate_hz, SAMPLE_RATE_HZ)
    return sound if ratio == 1 else np.clip(resample_poly(sound, ratio.numerator, ratio.denominator), -1, 1)


def _video_stream(container: OutputContainer, codec: Codec, frames: Frames, fps: Fraction | int) -> VideoStream:
    stream = container.add_stream(codec.video, rate=fps, options=dict(codec.video_options))
    assert isinstance(stream, VideoStream)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= BITEXACT
    return stream


def _audio_stream(container: OutputContainer, codec: Codec) -> AudioStream:
    options = {"aac_coder": "fast"} if codec.audio == "aac" else {}
    stream = container.add_stream(codec.audio, rate=codec.audio_rate_hz, options=options, layout="mono", bit_rate=64_000)
    assert isinstance(stream, AudioStream)
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= BITEXACT
    return stream


def _sound_frame(sound: Array, rate_hz: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(resampled(sound, rate_hz).astype(np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate = rate_hz
    frame.pts, frame.time_base = 0, Fraction(1, rate_hz)  # so that the encoder's lead-in lies before 0 and is skipped
    return frame
