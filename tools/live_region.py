"""The last lines of a terminal, redrawn in place below all that is printed.

rich's own live display leaves rows behind when the terminal becomes narrower, and hides the cursor, which a killed
process cannot bring back.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TextIO

from rich.console import Console
from rich.text import Text

_PLAIN = str.maketrans(dict(zip("━─·…×▁▂▃▄▅▆▇█", ("=", "-", "|", "...", "x", *"__..--^^"), strict=True)))
_CLEAR = "\x1b[J"  # from the cursor to the end of the screen


def coded(line: Text, stream: TextIO, *, coloured: bool) -> str:
    """A line as the stream can show it, in ASCII where it knows no more; colours are what the environment says."""
    # Not on the stream itself: rich flushes it, and its terminal may have gone away.
    console = Console(file=io.StringIO(), force_terminal=coloured, highlight=False)
    with console.capture() as captured:
        console.print(line, end="", soft_wrap=True)
    utf = (stream.encoding or "").lower().startswith("utf")
    return captured.get() if utf else captured.get().translate(_PLAIN)


def let_go(stream: TextIO) -> None:
    """Its reader went away: whatever is told to it from here on, at exit too, goes nowhere.

    So does what goes to the same place by stdout or stderr.
    """
    descriptors = [stream.fileno()]
    for other in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if os.path.sameopenfile(other.fileno(), stream.fileno()):
                descriptors.append(other.fileno())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


class Region:
    """The last lines of a terminal: a picture that is redrawn in place, and lines that are printed above it.

    Every row is written over, never first blanked, so nothing flickers; what is printed above stays in the
    scrollback. The cursor stays visible below, so that a killed process leaves nothing to mend. What other code
    prints on this terminal goes above, too. A terminal that has gone away ends the drawing, not the run.
    """

    def __init__(self, stream: TextIO, draw: Callable[[int], list[Text]], *, every_s: float = 0.5) -> None:
        self._stream, self._draw, self._every_s = stream, draw, every_s
        self._drawn: list[int] = []  # columns of each row
        self._last = ""
        self._gone = False
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._ticking = threading.Thread(target=self._tick, name="live view", daemon=True)
        self._before: list[tuple[str, TextIO]] = []

    def __enter__(self) -> Region:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream.isatty():
                self._before.append((name, stream))
                setattr(sys, name, _Above(self, stream))
        self._ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ticking.join()
        for name, stream in self._before:
            getattr(sys, name).finish()
            setattr(sys, name, stream)
        self.redraw()

    def redraw(self) -> None:
        """Show the picture as it is now."""
        self.print(())

    def print(self, lines: Iterable[Text]) -> None:
        """Put lines above the picture."""
        with self._lock:
            columns, rows = self._size()
            # The last column stays free: terminals differ in where the cursor is after it.
            drawn = self._draw(max(1, columns - 1))[: max(1, rows - 1)]
            below = "".join(f"{coded(line, self._stream, coloured=True)}\x1b[K\r\n" for line in drawn)
            above = "".join(f"{coded(line, self._stream, coloured=True)}\r\n" for line in lines)
            now = f"{columns} {below}"
            if self._gone or (not above and (now == self._last or not (drawn or self._drawn))):
                return
            back = sum(self._rows(cells, columns) for cells in self._drawn)
            up = f"\r\x1b[{back}A" if back else "\r"
            clear = _CLEAR if above else ""
            try:
                self._stream.write("".join((up, clear, above, below, _CLEAR)))
                self._stream.flush()
            except OSError:
                self._gone = True
                let_go(self._stream)
            self._last, self._drawn = now, [line.cell_len for line in drawn]

    def _tick(self) -> None:
        while not self._over.wait(self._every_s):
            self.redraw()

    def _size(self) -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return 80, 24
        return columns or 80, rows or 24

    @staticmethod
    def _rows(cells: int, columns: int) -> int:
        """Rows that a line has after the terminal became narrower: nearly all wrap it anew; these two cut it."""
        cuts = "XTERM_VERSION" in os.environ or "STY" in os.environ
        return 1 if cuts else max(1, -(-cells // columns))


class _Above(io.TextIOBase):
    """What is written to it goes above a region, whole lines at a time."""

    def __init__(self, region: Region, stream: TextIO) -> None:
        self._region, self._stream, self._rest = region, stream, ""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"text is written here, not {type(text).__name__}")
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._region.print([Text.from_ansi(line) for line in lines])
        return len(text)

    def finish(self) -> None:
        """Print what has no end of line yet."""
        if self._rest:
            self.write("\n")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()
