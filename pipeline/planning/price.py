"""What a teacher's pass and a student's epoch cost in seconds and money, from what was measured of a few rows and steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

DEVICES = (1, 8, 64)
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class PassSpeed:
    """How long a teacher's pass takes: before the first cache, for each further one, and for each row.

    Encoding, certificate, checksums and the disk are in the seconds of a row. `timed_rows` were run to learn this.
    """

    startup_seconds: float
    cache_seconds: float
    row_seconds: float
    timed_rows: int

    def seconds(self, rows_of_caches: Iterable[int], devices: int = 1) -> float:
        """Seconds of caches with so many new rows each: rows divided evenly over the devices, which start up together."""
        made = [rows for rows in rows_of_caches if rows]
        if not made:
            return 0.0
        return self.startup_seconds + self.cache_seconds * (len(made) - 1) + self.row_seconds * sum(made) / devices


@dataclass(frozen=True)
class StudentSpeed:
    """How long a student's step takes from the cache and with the teacher in its loop, and one validation.

    An epoch has `steps`, not always a whole number; a validation follows each `validate_every` of them.
    `online_step_seconds` is None where no teacher can run in a loop.
    """

    samples: int
    steps: float
    validate_every: int
    cached_step_seconds: float
    online_step_seconds: float | None
    validation_seconds: float

    @property
    def cached_epoch_seconds(self) -> float:
        return self._epoch(self.cached_step_seconds)

    @property
    def online_epoch_seconds(self) -> float | None:
        return None if self.online_step_seconds is None else self._epoch(self.online_step_seconds)

    def _epoch(self, step_seconds: float) -> float:
        return self.steps * (step_seconds + self.validation_seconds / self.validate_every)


def break_even_epochs(making_seconds: float, cached_epoch: float, online_epoch: float | None) -> float | None:
    """Epochs of one student after which its cache has paid for itself; None when it never does, or nothing is known."""
    if online_epoch is None or online_epoch <= cached_epoch:
        return None
    return making_seconds / (online_epoch - cached_epoch)


def price(seconds: float, devices: int, per_hour: float) -> float:
    """The price of so many seconds on all of these devices, at a price for each device and hour."""
    return devices * seconds / SECONDS_PER_HOUR * per_hour


def plain(speed: PassSpeed | StudentSpeed | None) -> dict[str, Any] | None:
    """A speed as plain values, for a record."""
    return None if speed is None else asdict(speed)
