"""Cooling down, on a clock that does not run by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from device_tests.bench.cooling import MARGIN, POLL, Cooling
from device_tests.devices import Battery, Conditions


@dataclass
class Phone:
    """Cools by a degree in `seconds`."""

    celsius: float | None
    seconds: float = 10.0
    now: float = 0.0
    looks: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        if self.celsius is not None:
            self.celsius -= seconds / self.seconds

    def conditions(self) -> Conditions:
        self.looks.append(self.now)
        return Conditions("phone", battery=Battery(celsius=self.celsius))

    def cooling(self, target: float | None, limit: float = 300.0) -> Cooling:
        return Cooling(target, limit, lambda: self.now, self.sleep)


def test_waits_until_cool() -> None:
    phone = Phone(40.0)
    wait, last = phone.cooling(35.0).wait(phone.conditions)
    assert (wait.reached, wait.waited, wait.celsius) == (True, 50.0, 35.0)
    assert last.celsius == 35.0
    assert phone.looks == [POLL * i for i in range(11)]


def test_a_limit_ends_the_wait_and_says_so() -> None:
    phone = Phone(60.0, seconds=1000.0)
    wait, _ = phone.cooling(35.0, limit=12.0).wait(phone.conditions)
    assert not wait.reached
    assert wait.waited == 12.0


@pytest.mark.parametrize("celsius", [30.0, None])
def test_a_cool_phone_and_one_without_a_sensor_do_not_wait(celsius: float | None) -> None:
    phone = Phone(celsius)
    wait, _ = phone.cooling(35.0).wait(phone.conditions)
    assert (wait.reached, wait.waited) == (True, 0.0)


def test_the_default_target_is_near_the_start() -> None:
    phone = Phone(28.0)
    assert phone.cooling(None).starting_at(phone.conditions()).target == 28.0 + MARGIN
    assert phone.cooling(33.0).starting_at(phone.conditions()).target == 33.0
    assert Phone(None).cooling(None).starting_at(Phone(None).conditions()).target is None


def test_without_a_battery_the_hottest_zone_counts() -> None:
    assert Conditions("board", thermal={"cpu": 61.0, "gpu": 55.0}).celsius == 61.0
