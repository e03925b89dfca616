"""A line on the terminal that shows how far a long step is; nothing if stderr is no terminal."""

import os
import sys
import time

BAR = 24  # characters
PAUSE = 0.2  # seconds between two looks


class Progress:
    """Shows, while a `with` statement runs, how many of total bytes are done.

    what   the step's name
    total  its bytes; None where nobody knows
    """

    def __init__(self, what, total=None):
        self.what, self.total = what, total
        self.shown = sys.stderr is not None and sys.stderr.isatty()
        self._start, self._next = time.monotonic(), 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def watch(self, process, position):
        """Wait for a subprocess.Popen to end, and show its progress.

        position  a function that returns the bytes that are done, and the total
        """
        while self.shown and process.poll() is None:
            done, self.total = position()
            self.show(done)
            time.sleep(PAUSE / 4)
        process.wait()

    def show(self, done: int) -> None:
        """Show that so many bytes are done, unless that was shown just now."""
        now = time.monotonic()
        if not self.shown or now < self._next:
            return
        self._next = now + PAUSE
        rate = done / max(now - self._start, PAUSE)
        line = f"{self.what}: {bytes_text(done)}"
        if self.total and done <= self.total:
            filled = BAR * done // self.total
            left = int((self.total - done) / rate) if rate else 0
            line = (
                f"{self.what}: [{'#' * filled}{'.' * (BAR - filled)}] {bytes_text(done)}"
                f" of {bytes_text(self.total)}, {left // 60}:{left % 60:02} left"
            )
        line += f", {bytes_text(rate)}/s"
        sys.stderr.write(
            "\r" + line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1] + "\033[K"
        )
        sys.stderr.flush()


def bytes_text(number: int) -> str:
    """Return a number of bytes as a person reads it."""
    size = float(number)
    for unit in "B", "kB", "MB":
        if size < 1000:
            break
        size /= 1000
    else:
        unit = "GB"
    return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
