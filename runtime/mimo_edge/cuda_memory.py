"""The few calls of the CUDA runtime that a TensorRT driver needs, through ctypes: no further package is asked for."""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

import numpy as np

from mimo_edge._core import DeviceError
from mimo_edge.backend import Array

TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
COMPUTE_MAJOR, COMPUTE_MINOR = 75, 76  # cudaDeviceAttr
LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")


class Cuda:
    """The device 0, one stream; everything is in its order."""

    def __init__(self) -> None:
        """Raises DeviceError if there is no CUDA runtime or no GPU."""
        for name in LIBRARIES:
            try:
                self._library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise DeviceError(f"cuda: expected one of {', '.join(LIBRARIES)}, got none; install the CUDA runtime")
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        self.stream: int = stream.value or 0

    def compute_capability(self) -> int:
        """86 for 8.6."""
        return 10 * self._attribute(COMPUTE_MAJOR) + self._attribute(COMPUTE_MINOR)

    def allocate(self, bytes_: int) -> Memory:
        """Memory filled with zeros, freed with the object."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(bytes_))
        self._call("cudaMemset", pointer, 0, ctypes.c_size_t(bytes_))
        return Memory(self, pointer.value or 0)

    def free(self, address: int) -> None:
        self._library.cudaFree(ctypes.c_void_p(address))

    def to_device(self, address: int, array: Array) -> None:
        """Copy a C-ordered array; it may be changed when the call returns."""
        self._copy(address, array.ctypes.data, array.nbytes, TO_DEVICE)

    def to_host(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Wait for the stream, then copy."""
        array = np.empty(shape, dtype)
        self._copy(array.ctypes.data, address, array.nbytes, TO_HOST)
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))
        return array

    def _copy(self, target: int, source: int, bytes_: int, kind: int) -> None:
        self._call("cudaMemcpyAsync", ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(bytes_), kind,
                   ctypes.c_void_p(self.stream))  # fmt: skip

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), which, 0)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            said = self._library.cudaGetErrorString(status).decode()
            raise DeviceError(f"cuda: {name} failed: {said}; is there a GPU with a driver, and memory left on it?")


class Memory:
    """Memory on the device."""

    def __init__(self, cuda: Cuda, address: int) -> None:
        self._cuda, self.address = cuda, address

    def __del__(self) -> None:
        self._cuda.free(self.address)
