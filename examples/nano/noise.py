"""Cabin noise and a simple room on the listening side: what a driver's microphone adds, made from seeded numbers."""

from __future__ import annotations

import numpy as np
from scipy.signal import fftconvolve, lfilter

RATE_HZ = 24000


def cabin(r: np.random.Generator, samples: int) -> np.ndarray:
    """Road rumble (falling with frequency), an engine's harmonics and air hiss -> float32 [samples], RMS 1."""
    white = r.standard_normal(samples).astype(np.float32)
    noise = lfilter([1.0], [1.0, -r.uniform(0.9, 0.995)], white).astype(np.float32)
    noise /= noise.std() + 1e-9
    noise += r.uniform(0.02, 0.3) * r.standard_normal(samples).astype(np.float32)
    if r.random() < 0.5:
        base, t = r.uniform(25, 110), np.arange(samples, dtype=np.float32) / RATE_HZ
        for k in range(1, 7):
            noise += r.uniform(0.05, 0.5) / k * np.sin(2 * np.pi * (base * k * t + r.random())).astype(np.float32)
    return noise / (noise.std() + 1e-9)


def room(r: np.random.Generator, wave: np.ndarray) -> np.ndarray:
    """Convolve with a direct sound and a decaying tail of 30-150 ms, 6-20 dB below it; keeps the length."""
    tail = r.standard_normal(int(RATE_HZ * 0.15)).astype(np.float32)
    tail *= np.exp(-np.arange(tail.size) / (RATE_HZ * r.uniform(0.03, 0.15) / 6.9)).astype(np.float32)
    tail *= 10 ** (-r.uniform(6, 20) / 20) / (np.sqrt(np.square(tail).sum()) + 1e-9)
    tail[0] += 1.0
    return fftconvolve(wave, tail)[: wave.size].astype(np.float32)


def drive(r: np.random.Generator, wave: np.ndarray, snr_db: tuple[float, float] = (5.0, 25.0)) -> np.ndarray:
    """wave float32 [samples] as a microphone in a moving car hears it; snr_db is drawn from the pair."""
    heard = room(r, wave) if r.random() < 0.5 else wave
    level = float(np.sqrt(np.square(heard).mean())) * 10 ** (-r.uniform(*snr_db) / 20)
    return (heard + level * cabin(r, wave.size)).astype(np.float32)
