"""A progress bar on standard error: nothing for short work, a redrawn line on a terminal, elsewhere a line at times.

    with ProgressBar(total=120.0, unit="s", label="transcribing") as bar:
        bar.update(0.5)

A thread of its own draws, so that the time goes on while one long call into the core keeps quiet.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

SILENT_S = 2.0  # work that is done by then shows nothing
REDRAW_S = 0.2  # on a terminal
LINE_S = 10.0  # between plain lines elsewhere
BAR_CELLS = 30


class ProgressBar:
    """Counts `total` units of work (None = unknown) and shows how far it has come."""

    def __init__(self, total: float | None, unit: str, label: str, stream: TextIO | None = None) -> None:
        self.total, self.unit, self.label = total, unit, label
        self.done = 0.0
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._shown = False
        self._closed = threading.Event()
        self._drawer = threading.Thread(target=self._draw, daemon=True)
        self._drawer.start()

    def update(self, amount: float) -> None:
        """Add `amount` units to what is done."""
        self.done += amount

    def close(self) -> None:
        """Leave the last state on the terminal, if anything was shown."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._drawer.join()
        if self._shown and self._terminal:
            self._show()
            self._write("\n")

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self) -> None:
        first, then = (SILENT_S, REDRAW_S) if self._terminal else (LINE_S, LINE_S)
        wait = first
        while not self._closed.wait(wait):
            self._show()
            wait = then

    def _show(self) -> None:
        self._shown = True
        line = f"{self.label}{self._amount()}, {time.monotonic() - self._started:.0f} s"
        self._write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")

    def _amount(self) -> str:
        if not self.total:
            return f" {self.done:.0f} {self.unit}" if self.done else ""
        share = min(self.done / self.total, 1.0)
        cells = "#" * round(share * BAR_CELLS)
        bar = f"[{cells:.<{BAR_CELLS}}] " if self._terminal else ""
        return f" {bar}{100 * share:.0f} % of {self.total:.0f} {self.unit}"

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
