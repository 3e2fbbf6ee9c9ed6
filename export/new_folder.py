"""A folder that is there whole or not at all: filled beside its destination under another name, renamed when complete.

    with new_folder(out, failure) as folder:  # whatever is raised, KeyboardInterrupt too, an old folder is untouched
        ...
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Failure = Callable[[str], Exception]  # makes the exception of a sentence
Progress = Callable[[float, float, str], None]  # units done, units in all, what is being worked on


class Counter:
    """Count units of work for a progress callback (None = nobody listens)."""

    def __init__(self, report: Progress | None, total: float) -> None:
        self._report, self._total, self._done = report, total, 0.0

    def add(self, count: float, name: str) -> None:
        self._done += count
        if self._report is not None:
            self._report(self._done, self._total, name)


@contextmanager
def new_folder(out: Path, failure: Failure) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place at the end, or vanishes if anything is raised.

    failure: makes what is raised in place of an OSError (disk full, not writable) from "<out> could not ...".
    """
    partial, old = (out.parent / f".{out.name}.{word}-{os.getpid()}" for word in ("partial", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # of an earlier process with this number
        try:
            partial.mkdir()
            yield partial
            _sync(partial)
            _move(partial, old, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full; free some space and try again" if full else str(error)
        raise failure(f"{out} could not be written: {what}") from error


def check_target(out: Path, mark: str, what: str, overwrite: bool, failure: Failure, *sources: Path) -> None:
    """Refuse a destination that is neither new nor an empty folder; with overwrite, one that lacks the file `mark`, or
    that is or holds one of the folders `sources`, which would vanish with it."""
    for source in sources:
        if source.resolve().is_relative_to(out.resolve()):
            raise failure(f"{out}: expected another folder than that of {source}, which is read; choose another name")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / mark).is_file():
        raise failure(f"{out}: expected a new folder, got something that is no {what}; choose another name")
    if not overwrite:
        raise failure(f"{out}: expected a new folder, but a {what} is there; add --overwrite to replace it")


def check_space(folder: Path, needed_bytes: int, failure: Failure, hint: str = "free some space") -> None:
    """Raise what `failure` makes if the disk of `folder`, which need not exist yet, lacks room."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        sizes = f"expected {needed_bytes / 1e9:.2f} GB free on this disk, got {free / 1e9:.2f} GB"
        raise failure(f"{sizes}; {hint}")


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _move(partial: Path, old: Path, out: Path) -> None:
    """Put the complete folder in place; an old one steps aside first and comes back if that fails."""
    try:
        if out.exists():
            os.rename(out, old)
        os.rename(partial, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
