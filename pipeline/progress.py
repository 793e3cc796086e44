"""Progress of long work, for people: a bar in a terminal, one line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_REFRESHES = 0.1
ROWS = 20  # of a terminal, for tqdm, which shows nothing where the terminal does not know them

Note = Callable[[], str]


class Advance(Protocol):
    """What reports progress to a bar."""

    def __call__(self, amount: int, note: Note | None = None, *, earlier: bool = False) -> None:
        """So much more is done; `earlier`: it was done by an earlier run, which does not count for the rate.

        `note` gives what else is worth showing, such as the loss; it is called only when something is shown.
        """
        ...


class Bar(Protocol):
    """What shows the progress of `what`: `total` of a `unit`, each of `bytes_each` bytes where bytes are worth showing.

    With the unit "bytes", amounts are shown in MB.
    """

    def __call__(
        self, what: str, total: int, unit: str, bytes_each: float = 0.0
    ) -> AbstractContextManager[Advance]: ...


@contextmanager
def no_bar(what: str, total: int, unit: str, bytes_each: float = 0.0) -> Iterator[Advance]:
    """No progress at all: the default of the library."""
    yield lambda amount, note=None, *, earlier=False: None


@contextmanager
def stderr_bar(what: str, total: int, unit: str, bytes_each: float = 0.0) -> Iterator[Advance]:
    """Progress of `what` on stderr: how much is done, units/s, MB/s and remaining time."""
    meter = Meter(total, unit, bytes_each)
    if not sys.stderr.isatty():

        def print_line(text: str) -> None:
            print(f"{what}: {text}", file=sys.stderr, flush=True)

        yield _advancing(meter, SECONDS_BETWEEN_LINES, time.monotonic(), print_line)
        return
    from tqdm import tqdm

    with tqdm(
        total=total, desc=what, leave=False, ncols=_columns(), nrows=ROWS, file=sys.stderr, bar_format=_BAR
    ) as bar:

        def redraw(text: str) -> None:
            bar.n, bar.ncols = min(meter.done, total), _columns()
            bar.bar_format = _BAR + text
            bar.refresh()

        yield _advancing(meter, SECONDS_BETWEEN_REFRESHES, float("-inf"), redraw)


_BAR = "{desc}: {percentage:3.0f}%|{bar}| "


class Meter:
    """How much of a work is done, how fast, and how long it will take still."""

    def __init__(self, total: int, unit: str, bytes_each: float = 0.0, clock: Callable[[], float] = time.monotonic):
        self.done = 0
        self._earlier = 0
        self._total, self._unit, self._bytes_each = total, unit, bytes_each
        self._clock = clock
        self._started = clock()

    def add(self, amount: int, *, earlier: bool = False) -> None:
        """So much more is done, by an earlier run or since the meter was made."""
        self.done += amount
        self._earlier += amount if earlier else 0

    def text(self) -> str:
        """Such as "1,024 of 60,000 rows, 5,120 rows/s, 10.2 MB/s, 00:11 left"; only the counts while no rate is known."""
        elapsed, done_now = self._clock() - self._started, self.done - self._earlier
        shown = [self._counts()]
        if elapsed > 0 and done_now > 0:
            rate = done_now / elapsed
            if self._unit == "bytes":
                shown.append(f"{_number(rate / 1e6)} MB/s")
            else:
                shown.append(f"{_number(rate)} {self._unit}/s")
            if self._bytes_each:
                shown.append(f"{_number(rate * self._bytes_each / 1e6)} MB/s")
            shown.append(f"{_interval(max(0, self._total - self.done) / rate)} left")
        return ", ".join(shown)

    def _counts(self) -> str:
        if self._unit == "bytes":
            return f"{_number(self.done / 1e6)} of {_number(self._total / 1e6)} MB"
        return f"{self.done:,} of {self._total:,} {self._unit}"


def _advancing(meter: Meter, seconds_between: float, last_shown: float, show: Callable[[str], None]) -> Advance:
    last = last_shown

    def advance(amount: int, note: Note | None = None, *, earlier: bool = False) -> None:
        nonlocal last
        meter.add(amount, earlier=earlier)
        now = time.monotonic()
        if now - last >= seconds_between and not earlier:  # nothing is known of the rate yet
            last = now
            show(meter.text() + (f", {note()}" if note is not None else ""))

    return advance


def _columns() -> int:
    """Columns of the terminal that stderr is; 80 where it does not know (tqdm would show nothing at all)."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _interval(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
