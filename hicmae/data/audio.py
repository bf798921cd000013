"""From a 16 kHz waveform to the normalised log-mel picture that the model sees.

Equal to the authors' release (kinetics_av.py, `_wav2fbank`): kaldi filter banks with a Hann window of 25 ms every 10 ms, no
dither, pre-emphasis 0.97, HTK-compatible; zero-padded or cut to `audio_frames`; then (x - mean) / (2 std) of AudioSet.
Computed with a precomputed window and mel matrix.

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
    return torch.stack([fbank(wave, audio_frames, mel_bins) for wave in waves])


def fbank(wave: Tensor, audio_frames: int, mel_bins: int) -> Tensor:
    """Normalised features (T, M) of one waveform (S,), all windows at once; what goes beyond `audio_frames` is cut off.

    One waveform at a time keeps everything in the processor's cache, which beats larger batches by a factor of two.
    """
    if wave.numel() < WINDOW:
        raise ValueError(f"sound of {wave.numel()} samples is shorter than one window of {WINDOW}")
    used = wave[: samples_needed(audio_frames)] - wave.mean()
    heard = _log_mel(used, mel_bins)  # (windows, M)
    features = heard.new_zeros(audio_frames, mel_bins)  # the release pads features, not sound
    features[: len(heard)] = heard
    return features.sub_(NORM_MEAN).div_(2 * NORM_STD)


def _log_mel(wave: Tensor, mel_bins: int) -> Tensor:
    """Log energies (windows, M), by kaldi's own steps, for in silence the features depend on the last bits.

    The first sample of a window is left out: its weight is 0.
    """
    windows = wave.unfold(0, WINDOW, SHIFT)  # (S,) -> (windows, WINDOW)
    centred = windows - windows.mean(-1, keepdim=True)
    padded = wave.new_zeros(len(windows), FFT)
    weighted = torch.sub(centred[:, 1:], centred[:, :-1] * PREEMPHASIS, out=padded[:, 1:WINDOW])
    weighted.mul_(_window()[1:])
    spectrum = torch.fft.rfft(padded)[:, : FFT // 2]  # (windows, FFT/2)
    power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
    return (power @ _mel_matrix(mel_bins)).clamp_min_(_EPSILON).log_()
