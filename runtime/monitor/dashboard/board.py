"""What the pages ask for, made once for all of them, and at most twice a second."""

import json
import secrets
import time
from itertools import islice

from runtime.monitor.dashboard.snapshot import Values, head, mark_row, member_row, step_row, thinned
from runtime.monitor.dashboard.tracks import COLUMNS, Tracks
from runtime.monitor.pictured import Mark
from runtime.monitor.source import Watched

EVERY_S = 0.5
# A member says something every second: who is silent for longer than this is silent.
STALE_S = 6.0
# Of a peer's page: outer steps in the strip that shows which it took part in, and marks.
MOST_STRIP, MOST_PEER_MARKS = 128, 64
MOST_PEER_ID = 64


class Board:
    """The one picture that all pages share. ``ended`` is set when nothing more will come.

    Args: replayed is whether what is shown is the past, in which silence means nothing.
    """

    def __init__(self, watched: Watched, replayed: bool = False) -> None:
        self._watched = watched
        self._tracks = Tracks(watched.picture)
        self._replayed = replayed
        self.ended = False
        self._born = secrets.token_hex(4)
        """A page that knows the past from another process has to hear all of it again."""
        self._made_at = float("-inf")
        self._head = b""
        watched.changed = self._tracks.look

    def run(self, since: str) -> bytes:
        """JSON for the run's page: the head, and of steps and marks those that are new since a stamp of before."""
        self._refresh()
        tracks, picture = self._tracks, self._watched.picture
        known = self._stamp(since)
        steps = tracks.steps_since(known)
        past = {
            "stamp": self._written_stamp(),
            "whole": not known,
            "first": min(picture.steps, default=0),
            "steps": [step_row(step, tracks) for step in (steps if known else thinned(steps))],
            "marks": [mark_row(mark) for mark in tracks.marks_since(known)],
            "validations": sorted(picture.validations.items()),
        }
        return self._with_head(past)

    def peer(self, peer: str) -> bytes:
        """JSON for a peer's page; ``peer`` is null in it if nobody has told of such a peer."""
        self._refresh()
        picture = self._watched.picture
        member = picture.members.get(peer)
        said: Values = {"stamp": self._written_stamp(), "columns": COLUMNS, "peer": None}
        if member is not None:
            ranks = [one.peer for one in picture.ranked()]
            whole = sum(one.tokens for one in picture.members.values())
            recent = [picture.steps[number] for number in sorted(picture.steps)[-MOST_STRIP:]]
            said["peer"] = {
                **member_row(member),
                "rank": ranks.index(peer) + 1,
                "of": len(ranks),
                "share": member.tokens / whole if whole else None,
            }
            said["track"] = self._tracks.track(peer)
            said["strip"] = [[step.outer_step, int(peer in step.members)] for step in recent if step.members]
            said["marks"] = [mark_row(mark) for mark in self._marks_of(peer)]
        return self._with_head(said)

    def _marks_of(self, peer: str) -> list[Mark]:
        newest = (mark for mark in reversed(self._watched.picture.marks) if mark.member == peer)
        return list(islice(newest, MOST_PEER_MARKS))[::-1]

    def _refresh(self) -> None:
        if time.monotonic() - self._made_at < EVERY_S:
            return
        self._tracks.refresh()
        self._head = _json(head(self._watched, self._tracks, self._state()))
        self._made_at = time.monotonic()

    def _state(self) -> str:
        if not self._watched.picture.time:
            return "waiting"
        if self.ended:
            return "ended"
        if self._replayed:
            return "replay"
        manifest, last = self._watched.manifest, self._watched.picture.last
        if manifest and last and last.outer_step >= manifest.config.outer.steps:
            return "over"
        return "silent" if self._watched.silent_s > STALE_S else "live"

    def _with_head(self, values: Values) -> bytes:
        return b'{"head":' + self._head + b"," + _json(values)[1:]

    def _written_stamp(self) -> str:
        return f"{self._born}-{self._tracks.stamp}"

    def _stamp(self, since: str) -> int:
        """0, which is all, for whatever this process has not given out."""
        born, _, number = since.partition("-")
        return int(number) if born == self._born and number.isdecimal() and len(number) < 16 else 0


def _json(values: Values) -> bytes:
    return json.dumps(values, separators=(",", ":"), allow_nan=False).encode()
