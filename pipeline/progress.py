"""Progress of long work, for people: a tqdm bar in a terminal, one line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
Bar = Callable[[str, int, str], AbstractContextManager[Advance]]

SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def no_bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    """No progress at all: the default of the library."""
    yield lambda amount: None


@contextmanager
def stderr_bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Progress of `what` on stderr: done, rate in `unit`/s and remaining time."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=f" {unit}", leave=False, dynamic_ncols=True) as bar:

            def advance(amount: int) -> None:
                bar.update(amount)

            yield advance
        return
    started = last = time.monotonic()
    done = 0

    def advance_in_lines(amount: int) -> None:
        nonlocal last, done
        done += amount
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            meter = tqdm.format_meter(done, total, last - started, prefix=what, unit=f" {unit}", bar_format=LINE_FORMAT)
            print(meter, file=sys.stderr, flush=True)

    yield advance_in_lines


LINE_FORMAT = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
