"""Waiting for a device to cool between runs, so that the last run is not slower for the first one's heat."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from device_tests.devices import Conditions

POLL = 5.0  # seconds between two looks
MARGIN = 3.0  # degrees above the start of the session that are still cool, where no target is given


@dataclass(frozen=True)
class Wait:
    """What a cool-down did. Degrees Celsius, seconds; celsius is the last reading, None where there is no sensor."""

    target: float | None
    celsius: float | None
    waited: float
    reached: bool

    def to_json(self) -> dict[str, float | bool | None]:
        return asdict(self)


@dataclass(frozen=True)
class Cooling:
    """target None: MARGIN above what the session began with. limit: seconds a wait may take. clock and sleep are
    time.monotonic's and time.sleep's, for tests to replace."""

    target: float | None = None
    limit: float = 300.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def starting_at(self, conditions: Conditions) -> Cooling:
        """With the target of a session that begins in these conditions."""
        if self.target is not None or conditions.celsius is None:
            return self
        return Cooling(conditions.celsius + MARGIN, self.limit, self.clock, self.sleep)

    def wait(self, look: Callable[[], Conditions]) -> tuple[Wait, Conditions]:
        """Until the device is at most as warm as the target or the limit has passed; the conditions then."""
        start = self.clock()
        while True:
            now = look()
            waited = self.clock() - start
            cool = self.target is None or now.celsius is None or now.celsius <= self.target
            if cool or waited >= self.limit:
                return Wait(self.target, now.celsius, round(waited, 1), cool), now
            self.sleep(min(POLL, self.limit - waited))
