"""Safetensors files: read one tensor or a few of its rows at a time, write a file as a stream.

    u64 header length | JSON header {name: {dtype, shape, data_offsets}} padded with spaces | data without holes

Source: the safetensors format description (huggingface/safetensors, README "Format"). BF16 is held as its uint16 bit
pattern, F8_E4M3 as uint8; numpy has no such types.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
    "F8_E4M3": np.dtype("u1"),
}
_UNREADABLE_BYTES = {"F8_E5M2": 1, "F8_E8M0": 1}  # may stand in a header, cannot be read here
ALIGNMENT = 64  # the data begins at a multiple of this many bytes: one cache line
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own implementation


def input_error(message: str) -> Exception:
    """Make the exception for something wrong in the user's files (imported late: the extension loads on first need)."""
    from mimo_edge import InputError

    return InputError(message)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `offset` counts bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def nbytes_of(dtype: str, shape: Iterable[int]) -> int:
    """Count the bytes of a tensor. dtype: a safetensors name."""
    itemsize = NUMPY_DTYPES[dtype].itemsize if dtype in NUMPY_DTYPES else _UNREADABLE_BYTES[dtype]
    return itemsize * math.prod(shape)


class SafetensorsFile:
    """One file, its header read and checked at construction; tensors are fetched on demand.

    Raises InputError if the file is truncated, its header is not valid, or tensors overlap or leave holes.
    """

    __slots__ = ("metadata", "path", "tensors")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        header, data_start, file_bytes = _read_header(path)
        for name, value in header.items():
            if name == "__metadata__":
                self.metadata = dict(value) if isinstance(value, dict) else {}
            else:
                self.tensors[name] = _tensor_info(path, name, value, data_start)
        _check_extents(path, self.tensors, data_start, file_bytes)

    def read(self, name: str) -> Array:
        """Return a whole tensor, read-only and mapped from the file: [shape], BF16 as uint16 bits."""
        info = self.tensors[name]
        dtype = self._numpy_dtype(info)
        if info.nbytes == 0:
            return np.empty(info.shape, dtype)
        mapped: Array = np.memmap(self.path, dtype=dtype, mode="r", offset=info.offset, shape=info.shape or (1,))
        return mapped.reshape(info.shape)

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Copy rows [start, stop) of the first axis out of the file, without mapping the rest."""
        info = self.tensors[name]
        dtype = self._numpy_dtype(info)
        row = math.prod(info.shape[1:])
        count = (stop - start) * row
        flat = np.fromfile(self.path, dtype, count, offset=info.offset + start * row * dtype.itemsize)
        if flat.size != count:
            raise input_error(f"read: {self.path} became shorter while {name} was read; copy the file anew")
        return flat.reshape((stop - start, *info.shape[1:]))

    def _numpy_dtype(self, info: TensorInfo) -> np.dtype[Any]:
        if info.dtype not in NUMPY_DTYPES:
            raise input_error(f"read: {info.name} in {self.path}: expected a readable dtype, got {info.dtype}")
        return NUMPY_DTYPES[info.dtype]


class SafetensorsFolder:
    """The tensors of a folder, in one file or in shards listed by an index; the same methods as one file.

    Raises InputError naming every shard that is missing and every tensor the index promises in vain.
    """

    __slots__ = ("_home", "files", "folder", "index", "tensors")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index, placed = _find_files(folder)
        names = sorted(set(placed.values())) if self.index else list(placed.values())
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise input_error(f"read: {folder}: expected {_listed(names)}, but {_listed(missing)} is missing")
        self.files = [SafetensorsFile(folder / name) for name in names]
        self._home: dict[str, SafetensorsFile] = {}
        for file in self.files:
            for name in file.tensors:
                if placed.get(name, file.path.name) != file.path.name:
                    continue
                if name in self._home:
                    raise input_error(f"read: {folder}: tensor {name} stands in two files, and not in the index")
                self._home[name] = file
        lost = [f"{name} ({shard})" for name, shard in placed.items() if name not in self._home] if self.index else []
        if lost:
            raise input_error(f"read: {folder}: the index promises tensors its shards do not hold: {_listed(lost)}")
        self.tensors = {name: file.tensors[name] for name, file in self._home.items()}

    def read(self, name: str) -> Array:
        """As SafetensorsFile.read."""
        return self._home[name].read(name)

    def rows(self, name: str, start: int, stop: int) -> Array:
        """As SafetensorsFile.rows."""
        return self._home[name].rows(name, start, stop)


class SafetensorsWriter:
    """Write one file front to back: the header, then every tensor in the order given, in as many blocks as wished.

    tensors: (name, dtype, shape) in file order. `bytes` and `sha256` are complete after `close`.
    Raises ValueError on a tensor out of order, of another size or dtype, or missing at the end: an error of the caller.
    """

    def __init__(
        self, path: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str] | None = None
    ) -> None:
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        offset = 0
        for name, dtype, shape in tensors:
            end = offset + nbytes_of(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._pending = [(name, dtype, nbytes_of(dtype, shape)) for name, dtype, shape in reversed(tensors)]
        self._written = 0  # bytes of the tensor now being written
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115  closed in close()
        try:
            self._put(len(text).to_bytes(8, "little") + text)
        except BaseException:
            self._file.close()
            raise

    @property
    def sha256(self) -> str:
        """The hash of all bytes written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, name: str, block: Array) -> int:
        """Append a block of `name`, C order, of the dtype announced. Returns its size in bytes."""
        self._skip_empty()
        expected = self._pending[-1] if self._pending else None
        if expected is None or expected[0] != name or NUMPY_DTYPES[expected[1]] != block.dtype:
            raise ValueError(f"write: expected {expected}, got {name} as {block.dtype}")
        data = np.ascontiguousarray(block)
        self._written += data.nbytes
        if self._written > expected[2]:
            raise ValueError(f"write: {name}: expected {expected[2]} bytes, got {self._written}")
        self._put(data.reshape(-1).view(np.uint8).data)
        if self._written == expected[2]:
            self._pending.pop()
            self._written = 0
        return data.nbytes

    def close(self) -> None:
        """Flush to the disk and close; ValueError if tensors are missing."""
        self._skip_empty()
        try:
            if self._pending:
                raise ValueError(f"write: {self._pending[-1][0]} is not complete")
            os.fsync(self._file.fileno())
            # What the cache holds came in small pages; who opens the file next reads it anew, in large ones.
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            self._file.close()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def _skip_empty(self) -> None:
        while self._pending and self._pending[-1][2] == 0:
            self._pending.pop()

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self._hash.update(view)
        self.bytes += len(view)
        while view:  # an unbuffered write may take less than it is given
            view = view[self._file.write(view) :]


def bf16_to_f32(bits: Array) -> NDArray[np.float32]:
    """Widen BF16 bit patterns (uint16) to float32, exactly: BF16 is the upper half of a float32."""
    return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)


def f32_to_bf16(values: Array) -> NDArray[np.uint16]:
    """Round float32 to BF16 bit patterns (uint16), to nearest, ties to even; NaN stays NaN (made quiet)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if nan.any():
        rounded = np.where(nan, (bits >> 16) | 0x40, rounded)
    return rounded.astype(np.uint16)


def to_f32(raw: Array, dtype: str) -> NDArray[np.float32]:
    """Widen stored values (F32, F16 or BF16 bits) to float32, exactly."""
    if dtype == "BF16":
        return bf16_to_f32(raw)
    if dtype not in ("F32", "F16"):
        raise input_error(f"read: expected F32, F16 or BF16, got {dtype}")
    return raw.astype(np.float32, copy=False)


def _listed(names: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for json.loads. Raises ValueError if a name stands in it twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice")
    return result


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    file_bytes = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or 8 + length > file_bytes or length > _MAX_HEADER_BYTES:
            raise input_error(
                f"read: {path}: expected a safetensors header, got length {length} in a file of {file_bytes} bytes: "
                "truncated, or no safetensors file"
            )
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise input_error(f"read: {path}: the header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise input_error(f"read: {path}: expected a JSON object as header, got {type(header).__name__}")
    return header, 8 + length, file_bytes


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tensor_info(path: Path, name: str, value: Any, data_start: int) -> TensorInfo:
    dtype, shape, offsets = (
        value.get(key) if isinstance(value, dict) else None for key in ("dtype", "shape", "data_offsets")
    )
    if not (isinstance(shape, list) and all(map(_is_size, shape))):
        raise input_error(f"read: {path}: tensor {name}: expected a shape of whole numbers, got {shape!r}")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets))):
        raise input_error(f"read: {path}: tensor {name}: expected two data_offsets, got {offsets!r}")
    if not isinstance(dtype, str) or (dtype not in NUMPY_DTYPES and dtype not in _UNREADABLE_BYTES):
        raise input_error(f"read: {path}: tensor {name}: unsupported dtype {dtype!r}")
    expected = nbytes_of(dtype, shape)
    if offsets[1] - offsets[0] != expected:
        raise input_error(
            f"read: {path}: tensor {name}: expected {expected} bytes for {dtype} {shape}, got {offsets[1] - offsets[0]}"
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], expected)


def _check_extents(path: Path, tensors: dict[str, TensorInfo], data_start: int, file_bytes: int) -> None:
    end = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            what = "overlaps the one before it" if info.offset < end else "leaves a hole before it"
            raise input_error(f"read: {path}: tensor {info.name} {what} at byte {info.offset}")
        end = info.offset + info.nbytes
    if end != file_bytes:
        what = "is truncated; copy it anew" if end > file_bytes else "has bytes its header does not describe"
        raise input_error(f"read: {path}: expected {end} bytes, got {file_bytes}: the file {what}")


def _find_files(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """Return the index file if there is one, and tensor -> file name (without an index: one entry, the single file)."""
    if not folder.is_dir():
        raise input_error(f"read: expected a folder, got {folder}")
    if (folder / "model.safetensors").is_file():
        return None, {"": "model.safetensors"}
    indices = sorted(
        folder.glob("*.safetensors.index.json"), key=lambda path: (not path.name.startswith("model."), path)
    )
    if indices:
        return indices[0], _read_index(indices[0])
    singles = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(singles) == 1:
        return None, {"": singles[0]}
    hint = "; convert the .bin files to safetensors first" if any(folder.glob("*.bin")) else ""
    got = _listed(singles) if singles else "none"
    raise input_error(f"read: {folder}: expected model.safetensors or model.safetensors.index.json, got {got}{hint}")


def _read_index(path: Path) -> dict[str, str]:
    try:
        placed = json.loads(path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise input_error(f"read: {path}: expected a JSON object with weight_map, got {error!r}") from error
    plain = isinstance(placed, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in placed.values()
    )
    if not plain or not placed:
        raise input_error(f"read: {path}: expected weight_map to give a plain file name for each tensor")
    return dict(placed)
