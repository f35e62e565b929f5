"""What a volunteer lends, as they write it and as numbers: rates, sizes, hours of the day."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from peers.caps import NO_CAPS, Caps

OFF = "off"
MINUTES_A_DAY = 24 * 60

_SCALES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_NUMBER = r"(\d{1,9}(?:\.\d{1,6})?) ?"
_RATE = re.compile(_NUMBER + r"([kKMG]?)(B|bit)/s", re.ASCII)
_SIZE = re.compile(_NUMBER + r"([kKMGT]?)(i?)B", re.ASCII)
_SPAN = re.compile(r"(\d\d?):(\d\d)-(\d\d?):(\d\d)", re.ASCII)


@dataclass(frozen=True)
class Hours:
    """The times of the day at which a peer may take part, by the clock on the wall."""

    spans: tuple[tuple[int, int], ...]
    """From and until, in minutes since midnight; where the end is not after the beginning it is on the next day."""

    def has(self, minute: int) -> bool:
        return any((minute - start) % MINUTES_A_DAY < (stop - start) % MINUTES_A_DAY for start, stop in self.spans)

    def next_start(self, minute: int) -> int:
        """When the first span from now on begins."""
        return min((start for start, _ in self.spans), key=lambda start: (start - minute) % MINUTES_A_DAY)


@dataclass(frozen=True)
class Limits:
    """The same as the settings of a peer have it, in numbers; 0 and None stand for no limit."""

    caps: Caps = NO_CAPS
    threads: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    hours: Hours | None = None
    pause_on_battery: bool = False
    pause_when_busy: bool = False


def parse_rate(text: str) -> int:
    """Bytes a second of ``2MB/s``, ``500kB/s`` or ``10Mbit/s``; 0 for ``off``. Powers of ten, as links have them.

    Raises: ValueError.
    """
    if text == OFF:
        return 0
    if not (match := _RATE.fullmatch(text)):
        raise ValueError(f"{text!r} is no rate")
    number, scale, unit = match.groups()
    return _at_least_one(text, float(number) * _SCALES[scale] / (8 if unit == "bit" else 1))


def parse_size(text: str) -> int:
    """Bytes of ``4GB``, ``500MB`` or ``2GiB``; 0 for ``off``.

    Raises: ValueError.
    """
    if text == OFF:
        return 0
    if not (match := _SIZE.fullmatch(text)):
        raise ValueError(f"{text!r} is no size")
    number, scale, binary = match.groups()
    power = "KMGT".find(scale.upper()) + 1 if scale else 0
    return _at_least_one(text, float(number) * (1024**power if binary else _SCALES[scale]))


def _at_least_one(text: str, number: float) -> int:
    """Who writes 0 wants to lend nothing, and 0 stands for no limit."""
    if not (whole := round(number)):
        raise ValueError(f"{text!r} is nothing; no limit is {OFF}")
    return whole


def parse_hours(text: str) -> Hours | None:
    """``22:00-07:00``, or several such with commas between them; None for ``off``.

    Raises: ValueError.
    """
    if text == OFF:
        return None
    spans = []
    for span in text.split(","):
        if not (match := _SPAN.fullmatch(span.strip())):
            raise ValueError(f"{span!r} is no span of hours")
        from_hour, from_minute, to_hour, to_minute = map(int, match.groups())
        start, stop = 60 * from_hour + from_minute, 60 * to_hour + to_minute
        # 24:00 is how many write the end of a day.
        if from_hour > 23 or from_minute > 59 or to_minute > 59 or stop > MINUTES_A_DAY:
            raise ValueError(f"{span!r} has no time of the day")
        if (stop - start) % MINUTES_A_DAY == 0:
            raise ValueError(f"{span!r} is nothing, or the whole day, which is off")
        spans.append((start, stop % MINUTES_A_DAY))
    return Hours(tuple(spans))


def limits_words(in_force: Mapping[str, object]) -> list[str]:
    """Of all limits, by their names, those that limit something: ``up 2MB/s``."""
    return [f"{name} {limit_words(value)}" for name, value in in_force.items() if value not in (OFF, False, 0)]


def limit_words(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else OFF
    # Of threads, as many as PyTorch chooses.
    return str(value) if value else "any"


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
