"""Sound in and out: files and arrays become mono float32, replies become files.

Reading goes through libsndfile (soundfile): wav, flac, ogg, mp3, any rate, any channel count, any bit depth.
Channels are mixed by their mean, as the reference does (mimo_audio.py, preprocess_input). Resampling to the codec's
rate is the core's work (`_core.resample`) and happens later, so that a long file can be read in blocks.
"""

from __future__ import annotations

import contextlib
import io
import numbers
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile  # type: ignore[import-untyped]
from numpy.typing import NDArray

from mimo_edge._core import Error, InputError

Wave: TypeAlias = NDArray[np.float32]
"""float32 [samples], mono, in [-1, 1]."""
Samples: TypeAlias = NDArray[Any]
"""float or integer [samples], [channels, samples] or [samples, channels]."""
AudioInput: TypeAlias = str | os.PathLike[str] | tuple[Samples, int]
"""A file, or samples with their rate in Hz."""

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000  # what recorders produce; outside of it the header is wrong
TRUNCATION_SLACK_S = 0.1  # mp3 headers promise a few codec frames more than they hold


@dataclass(frozen=True, slots=True)
class Recording:
    """One audio input, read as mono float32 in blocks; nothing is held but the block in hand.

    source: the file, or samples [samples, channels] already scaled to [-1, 1].
    rate_hz: samples a second. samples: length in samples of one channel.
    """

    source: Path | NDArray[np.float32]
    rate_hz: int
    samples: int

    @property
    def seconds(self) -> float:
        return self.samples / self.rate_hz

    def blocks(self, seconds: float) -> Iterator[Wave]:
        """Yield the recording in order, `seconds` at a time. Raises InputError on NaN, infinity or a short file."""
        block_samples = max(1, round(seconds * self.rate_hz))
        got = 0
        for block in self._raw_blocks(block_samples):
            wave = np.ascontiguousarray(block.mean(axis=1, dtype=np.float32))
            if not np.isfinite(wave).all():
                raise InputError(f"read_audio: expected finite samples, got NaN or infinity in {self.name}")
            got += len(wave)
            yield wave
        if got < self.samples - TRUNCATION_SLACK_S * self.rate_hz:
            raise InputError(f"read_audio: expected {self.samples} samples in {self.name}, got {got}; it is truncated")

    def read(self) -> Wave:
        """Return the whole recording, float32 [samples]."""
        return np.concatenate([np.zeros(0, np.float32), *self.blocks(60.0)])

    @property
    def name(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else "the array"

    def _raw_blocks(self, block_samples: int) -> Iterator[NDArray[np.float32]]:
        if not isinstance(self.source, Path):
            for start in range(0, self.samples, block_samples):
                yield self.source[start : start + block_samples]
            return
        try:
            with soundfile.SoundFile(self.source) as file:
                while len(block := file.read(block_samples, dtype="float32", always_2d=True)):
                    yield block
        except soundfile.LibsndfileError as error:
            raise InputError(f"read_audio: expected a whole audio file, got {self.source}: {_reason(error)}") from error


def open_audio(audio: AudioInput) -> Recording:
    """Check an input and return it as a Recording. Raises InputError for anything that cannot be sound."""
    if isinstance(audio, tuple) and len(audio) == 2:
        recording = _from_array(*audio)
    elif isinstance(audio, (str, os.PathLike)):
        recording = _from_file(Path(audio))
    else:
        raise InputError(f"read_audio: expected a file or (samples, rate in Hz), got {_kind(audio)}")
    if not LOWEST_RATE_HZ <= recording.rate_hz <= HIGHEST_RATE_HZ:
        allowed = f"{LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz"
        raise InputError(f"read_audio: expected a rate of {allowed}, got {recording.rate_hz} in {recording.name}")
    if recording.samples == 0:
        raise InputError(f"read_audio: expected sound, got zero samples in {recording.name}")
    return recording


def read_audio(audio: AudioInput) -> tuple[Wave, int]:
    """Read a whole input. Returns (float32 [samples] mono, rate in Hz); raises InputError."""
    recording = open_audio(audio)
    return recording.read(), recording.rate_hz


def encode_wav(wave: Wave, rate_hz: int, suffix: str = ".wav") -> bytes:
    """Return a PCM_16 file as bytes; samples beyond [-1, 1] are clipped, as libsndfile does for the reference.

    suffix: .wav or .flac.
    """
    if suffix not in (".wav", ".flac"):
        raise InputError(f"write_wav: expected a name ending in .wav or .flac, got '{suffix}'")
    if wave.ndim != 1:
        raise InputError(f"write_wav: expected mono sound [samples], got shape {list(wave.shape)}")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1.0, 1.0), rate_hz, format=suffix[1:].upper(), subtype="PCM_16")
    return buffer.getvalue()


def write_wav(path: str | os.PathLike[str], wave: Wave, rate_hz: int) -> None:
    """Write mono sound, float32 [samples], as PCM_16 (.wav or .flac by the name); it appears whole or not at all.

    Raises InputError for another name or shape, Error where it cannot be written.
    """
    target = Path(path)
    replace_file(target, encode_wav(wave, rate_hz, target.suffix.lower()))


def replace_file(path: Path, data: bytes) -> None:
    """Write beside the file, then rename, so that a full disk or a crash loses nothing that existed. Raises Error.

    A link stays, and what it names is replaced. What is no file, a pipe or /dev/stdout, is written into.
    """
    target = path.resolve()
    partial = target.with_name(f".{target.name[:40]}.{threading.get_native_id()}.partial")
    try:
        if is_written_into(path):
            path.write_bytes(data)
            return
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise Error(f"write: cannot write {path}: {error.strerror}") from error


def is_written_into(path: Path) -> bool:
    """Say whether `path` is what cannot be renamed onto: a device, a pipe, a folder (which fails)."""
    return path.parent == Path("/dev") or (path.exists() and not path.is_file())


def _from_file(path: Path) -> Recording:
    if not path.exists():
        raise InputError(f"read_audio: expected an audio file, found nothing at {path}")
    if not path.is_file():
        raise InputError(f"read_audio: expected an audio file, got {path}, which is not a file")
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise InputError(f"read_audio: expected wav, flac, ogg or mp3, got {path}: {_reason(error)}") from error
    _check_wav_length(path)
    return Recording(path, info.samplerate, info.frames)


def _from_array(samples: Samples, rate_hz: int) -> Recording:
    array = np.asarray(samples)
    if array.ndim not in (1, 2):
        raise InputError(f"read_audio: expected samples of one or two dimensions, got shape {list(array.shape)}")
    if not isinstance(rate_hz, numbers.Real) or not float(rate_hz).is_integer():
        raise InputError(f"read_audio: expected a whole number of samples a second, got {rate_hz}")
    columns = array[:, None] if array.ndim == 1 else array
    if array.ndim == 2 and array.shape[0] < array.shape[1]:  # fewer rows than columns: [channels, samples]
        columns = array.T
    return Recording(_scaled(columns), int(rate_hz), columns.shape[0] if columns.size else 0)


def _scaled(samples: Samples) -> NDArray[np.float32]:
    """Return float32 in [-1, 1]: integers are divided by 2^(bits-1), unsigned bytes are centred first."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    if samples.dtype.kind == "i":
        return (samples / float(2 ** (8 * samples.dtype.itemsize - 1))).astype(np.float32)
    raise InputError(f"read_audio: expected float or integer samples, got {samples.dtype}")


def _check_wav_length(path: Path) -> None:
    """Refuse a RIFF file whose data chunk promises more bytes than the file has (libsndfile shortens it silently)."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return
        while len(header := file.read(8)) == 8:
            kind, size = struct.unpack("<4sI", header)
            if kind == b"data":
                break
            file.seek(size + size % 2, os.SEEK_CUR)
        else:
            return
        present = path.stat().st_size - file.tell()
    if present < size < 0xFFFFFFFF - 8:  # a size near 2^32 is a recorder's "unknown" in a stream
        raise InputError(f"read_audio: expected {size} bytes of sound in {path}, got {present}; it is truncated")


def _kind(audio: object) -> str:
    return f"{len(audio)} values" if isinstance(audio, tuple) else f"{type(audio).__name__} alone"


def _reason(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).rstrip(".")
