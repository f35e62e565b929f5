"""One line of what ``atoll doctor`` says."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from runtime.monitor.words import plain

# Some words are what members say: nothing of theirs moves a cursor, or makes a line of its own.
MOST_CHARACTERS = 2000


class Verdict(StrEnum):
    PASS = "pass"
    WARN = "warn"
    """It works, but not well, or not for long."""
    FAIL = "fail"
    """It does not work."""


@dataclass(frozen=True)
class Check:
    name: str
    verdict: Verdict
    words: str
    fix: str = ""
    """What to do, exactly; empty where there is nothing to mend."""

    def __str__(self) -> str:
        line = plain(f"{self.verdict}  {self.name:<12}{self.words}", MOST_CHARACTERS)
        return f"{line}\n      {'':<12}fix: {plain(self.fix, MOST_CHARACTERS)}" if self.fix else line

    def sentence(self) -> str:
        """In one line, for whoever did not ask."""
        return plain(f"{self.name}: {self.words}" + (f"; {self.fix}" if self.fix else ""), MOST_CHARACTERS)


def passed(name: str, words: str) -> Check:
    return Check(name, Verdict.PASS, words)


def warned(name: str, words: str, fix: str) -> Check:
    return Check(name, Verdict.WARN, words, fix)


def failed(name: str, words: str, fix: str) -> Check:
    return Check(name, Verdict.FAIL, words, fix)


def fails(checks: Iterable[Check]) -> list[Check]:
    return [check for check in checks if check.verdict is Verdict.FAIL]
