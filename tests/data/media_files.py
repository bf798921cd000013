"""Small media files with chosen properties, made with PyAV; and corpora of them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def tone(seconds: float, rate_hz: int, pitch_hz: float = 440.0) -> NDArray[np.float32]:
    """A sine of half the full scale."""
    return (0.5 * np.sin(2 * np.pi * pitch_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def grey_frames(count: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Frames whose grey says which they are: 10, 12, 14, ... modulo 200."""
    shades = (10 + 2 * np.arange(count)) % 200
    return np.broadcast_to(shades[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def write_clip(
    path: Path,
    frames: NDArray[np.uint8] | None = None,
    sound: NDArray[np.float32] | None = None,
    rate_hz: int = 16000,
    fps: int = 25,
    channels: int = 1,
    times: list[int] | None = None,
) -> Path:
    """A file in the container of the suffix; `times` are the frames' ticks of 1/fps s, for variable frame rates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = None if frames is None else container.add_stream("libx264", rate=fps, options={"crf": "5", "bf": "0"})
        codec = {".wav": "pcm_s16le", ".mp4": "aac", ".m4a": "aac"}[path.suffix]
        layout = "stereo" if channels == 2 else "mono"
        audio = None if sound is None else container.add_stream(codec, rate=rate_hz, layout=layout)
        if video is not None and frames is not None:
            video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            if frames.shape[1] % 2 or frames.shape[2] % 2:
                video.pix_fmt = "yuv444p"
            for number, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = (times or list(range(len(frames))))[number], Fraction(1, fps)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None and sound is not None:
            _mux_sound(container, audio, np.tile(sound, (channels, 1)), rate_hz, layout)
    return path


def _mux_sound(container, audio, sound, rate_hz: int, layout: str) -> None:  # type: ignore[no-untyped-def]
    if audio.codec_context.name == "pcm_s16le":
        values = (sound * 32767).round().astype(np.int16).T.reshape(1, -1)  # (channels, n) -> interleaved
        frame = av.AudioFrame.from_ndarray(values, format="s16", layout=layout)
    else:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
    frame.sample_rate = rate_hz
    if sound.shape[1]:
        container.mux(audio.encode(frame))
    container.mux(audio.encode(None))


def index_in_front(whole: Path) -> Path:
    """The same clip as downloads have it: its index stands before the frames and says how many there should be."""
    return copied(whole, whole.with_name("front.mp4"))


def copied(whole: Path, path: Path, title: str = "") -> Path:
    """The same streams in another MP4, with its index in front."""
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as sink:
        sink.metadata["title"] = title
        copies = {stream: sink.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream]
                sink.mux(packet)
    return path


def write_table(root: Path, clips: int = 12, frames: int = 40, folds: int = 2) -> Path:
    """A `csv:` corpus of muxed clips of two classes and three people; returns the table."""
    lines = ["sample_id,video,label,group,fold"]
    for number in range(clips):
        path = root / "clips" / f"clip{number:02d}.mp4"
        write_clip(path, grey_frames(frames), tone(frames / 25, 16000, 200 + 40 * number))
        lines.append(f"clip{number:02d},clips/{path.name},{('calm', 'loud')[number % 2]},p{number % 3},{number % folds + 1}")
    table = root / "clips.csv"
    table.write_text("\n".join(lines) + "\n")
    return table
