"""From a 16 kHz waveform to the normalised log-mel picture that the model sees.

Equal to the authors' release (kinetics_av.py, `_wav2fbank`): kaldi filter banks with a Hann window of 25 ms every 10 ms, no
dither, pre-emphasis 0.97, HTK-compatible; zero-padded or cut to `audio_frames`; then (x - mean) / (2 std) of AudioSet.
Computed with a precomputed window and mel matrix on many waveforms at once.

Legend: B batch, S samples of sound, T feature frames, M mel bins.
"""

from __future__ import annotations

from functools import cache

import torch
import torchaudio
from torch import Tensor

SAMPLE_RATE_HZ = 16000
NORM_MEAN, NORM_STD = -4.2677393, 4.5689974  # of AudioSet, as in AudioMAE
WINDOW, SHIFT, FFT = 400, 160, 512  # samples: 25 ms, 10 ms, the next power of two
LOW_HZ, PREEMPHASIS = 20.0, 0.97
MIN_SAMPLES = 1024  # the release refuses shorter sound
_EPSILON = torch.finfo(torch.float32).eps


@cache
def _window() -> Tensor:
    return torch.hann_window(WINDOW, periodic=False)


@cache
def _mel_matrix(mel_bins: int) -> Tensor:
    """(FFT/2, M): triangles that are equally wide in mel; the Nyquist bin has no weight."""
    banks, _ = torchaudio.compliance.kaldi.get_mel_banks(mel_bins, FFT, float(SAMPLE_RATE_HZ), LOW_HZ, 0.0, 100.0, -500.0, 1.0)
    return banks.T.contiguous()


def samples_needed(audio_frames: int) -> int:
    """How many samples of sound the frames of the features cover; what follows changes nothing but the mean."""
    return WINDOW + (audio_frames - 1) * SHIFT


def fbank_batch(waves: list[Tensor], audio_frames: int, mel_bins: int) -> Tensor:
    """Normalised features (B, T, M) of waveforms (S,) in [-1, 1] at 16 kHz, which may differ in length.

    Raises ValueError for a waveform shorter than one window (25 ms).
    """
    padded = torch.zeros(len(waves), samples_needed(audio_frames))
    counts = []
    for row, wave in zip(padded, waves, strict=True):
        if wave.numel() < WINDOW:
            raise ValueError(f"sound of {wave.numel()} samples is shorter than one window of {WINDOW}")
        used = min(wave.numel(), row.numel())
        torch.sub(wave[:used], wave.mean(), out=row[:used])
        counts.append(min(audio_frames, 1 + (wave.numel() - WINDOW) // SHIFT))
    features = _log_mel(padded, mel_bins)  # (B, T, M)
    for row, count in zip(features, counts, strict=True):
        row[count:] = 0.0  # the release pads features, not sound
    return features.sub_(NORM_MEAN).div_(2 * NORM_STD)


def _log_mel(waves: Tensor, mel_bins: int) -> Tensor:
    frames = waves.unfold(-1, WINDOW, SHIFT)  # (B, S) -> (B, T, WINDOW)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], -1)  # kaldi repeats the first sample
    emphasised = (frames - PREEMPHASIS * before) * _window()
    spectrum = torch.fft.rfft(emphasised, n=FFT)[..., : FFT // 2]  # (B, T, FFT/2)
    power = spectrum.real.square() + spectrum.imag.square()
    return (power @ _mel_matrix(mel_bins)).clamp_min(_EPSILON).log()


def fbank(wave: Tensor, audio_frames: int, mel_bins: int) -> Tensor:
    """Normalised features (T, M) of one waveform (S,)."""
    return fbank_batch([wave], audio_frames, mel_bins)[0]
