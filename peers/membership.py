"""Which peers of the run are known, dialled, linked and silent: a pure machine.

A link is up while this peer has a control stream to the other and hears one from it. The end of either stream is the
other's death, now; a silence that is long for this link is taken as death too. Each side opens again what it had
opened itself: to close the other half as well would end, on a link that broke for a moment, what the other has just
mended. Where a peer is only known from a record, it is dialled, and dialled again ever more rarely.
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import assert_never

from peers.messages import Addresses, Status

HEARTBEAT_S = 0.5
# A silence is long when it is three times the longest gap that the link has had lately, within these bounds: a busy
# machine with twice as much to do as it has cores was seen to delay a heartbeat by 2 s, once in ten minutes.
SILENCE_LEAST_S, SILENCE_MOST_S = 6 * HEARTBEAT_S, 12.0
# Of the longest gap this much is remembered at each frame: half of it after 35 frames.
GAP_MEMORY = 0.98
# Where another has lost the peer, two heartbeats have to show that it lives; that is asked once in a while, however
# often it is said.
DOUBT_S, DOUBT_AGAIN_S = 2 * HEARTBEAT_S, 10.0
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 60.0
# A sixth of the absence so far at most: a partition is noticed to have healed soon, and the dead cost little.
RETRY_GROWTH = 1.2
# Dead peers whose records have not expired yet are forgotten beyond this many, oldest contact first.
MOST_KNOWN = 1024
# Of those only known from records, of which anybody can write any number. Who was just heard is dialled at once.
MOST_DIALS = 64
# Addresses that are worth keeping for the next start.
MOST_REMEMBERED = 256


@dataclass(frozen=True)
class Known:
    """A record or a Hello said where a peer can be dialled."""

    peer: str
    addresses: Addresses


@dataclass(frozen=True)
class DialFailed:
    peer: str


@dataclass(frozen=True)
class Dialled:
    """Our control stream to the peer is open."""

    peer: str


@dataclass(frozen=True)
class Heard:
    """Something came from the peer; ``status`` if it was a Hello or a Heartbeat."""

    peer: str
    status: Status | None


class Half(Enum):
    """Which of the two streams of a link."""

    TO_PEER = auto()
    FROM_PEER = auto()
    BOTH = auto()


@dataclass(frozen=True)
class Ended:
    """A control stream to or from the peer has ended, or both are given up; ``left`` if the peer said goodbye."""

    peer: str
    reason: str
    half: Half = Half.BOTH
    left: bool = False


@dataclass(frozen=True)
class Doubted:
    """Another member has lost this peer."""

    peer: str


@dataclass(frozen=True)
class Slept:
    """This process stood still (SIGSTOP, a closed lid): what it did not hear then is nobody's silence."""

    seconds: float


@dataclass(frozen=True)
class Tick:
    pass


Event = Known | DialFailed | Dialled | Heard | Ended | Doubted | Slept | Tick


@dataclass(frozen=True)
class Dial:
    peer: str
    addresses: Addresses


@dataclass(frozen=True)
class Up:
    peer: str
    status: Status


@dataclass(frozen=True)
class Changed:
    peer: str
    status: Status


@dataclass(frozen=True)
class Down:
    """The peer is not linked any more. Unless it ``left``, it is dialled again at once."""

    peer: str
    reason: str
    left: bool = False


@dataclass(frozen=True)
class Gone:
    """The dial after a Down has failed: not the connection has ended, but the peer, or the way to it."""

    peer: str


@dataclass(frozen=True)
class Drop:
    """Close what is left of the link, a dial included."""

    peer: str


Action = Dial | Up | Changed | Down | Gone | Drop


@dataclass
class _Link:
    addresses: Addresses = ()
    dialling: bool = False
    missing: bool = False
    sending: bool = False
    status: Status | None = None
    last_heard: float = 0.0
    longest_gap_s: float = 0.0
    doubted_at: float | None = None
    not_doubted_before: float = 0.0
    retry_at: float = 0.0
    retry_s: float = RETRY_FIRST_S

    @property
    def open(self) -> bool:
        return self.sending or self.status is not None

    @property
    def up(self) -> bool:
        return self.sending and self.status is not None

    @property
    def silent_at(self) -> float:
        """When the silence since ``last_heard`` has become too long."""
        usual = self.last_heard + min(max(3 * self.longest_gap_s, SILENCE_LEAST_S), SILENCE_MOST_S)
        if self.doubted_at is None:
            return usual
        return min(usual, self.doubted_at + max(DOUBT_S, 1.5 * self.longest_gap_s))

    def heard(self, now: float) -> None:
        if self.status is not None:
            self.longest_gap_s = max(now - self.last_heard, GAP_MEMORY * self.longest_gap_s)
        self.last_heard, self.doubted_at = now, None


@dataclass
class Membership:
    """``handle(event, now)`` takes loop time in seconds and never raises because of a peer."""

    peer: str
    _links: dict[str, _Link] = field(default_factory=dict)

    def members(self) -> dict[str, Status]:
        """The linked peers, sorted by id, with the last status of each."""
        return {peer: link.status for peer, link in sorted(self._links.items()) if link.sending and link.status}

    def is_up(self, peer: str) -> bool:
        return peer in self._links and self._links[peer].up

    def silent_s(self, peer: str, now: float) -> float:
        """For how long a linked peer has said nothing; 0 for any other."""
        return now - self._links[peer].last_heard if self.is_up(peer) else 0.0

    def addresses_of(self, peer: str) -> Addresses:
        """Where the peer said last that it can be dialled."""
        return self._links[peer].addresses if peer in self._links else ()

    def addresses(self) -> tuple[str, ...]:
        """Where the peers that were heard last said that they can be dialled, the linked ones first."""
        links = sorted(self._links.values(), key=lambda link: (not link.up, -link.last_heard))
        return tuple(address for link in links for address in link.addresses)[:MOST_REMEMBERED]

    def next_deadline(self) -> float | None:
        deadlines = [link.silent_at for link in self._links.values() if link.open]
        deadlines += [link.retry_at for link in self._to_dial().values()]
        return min(deadlines, default=None)

    def handle(self, event: Event, now: float) -> list[Action]:
        if not isinstance(event, Tick | Slept) and event.peer == self.peer:
            return []
        match event:
            case Known(peer, addresses):
                link = self._links.setdefault(peer, _Link(retry_at=now, last_heard=now))
                if addresses != link.addresses:
                    link.addresses, link.retry_at, link.retry_s = addresses, now, RETRY_FIRST_S
                self._forget()
                return self._dial_due(now)
            case Dialled(peer):
                link = self._links.setdefault(peer, _Link())
                link.dialling, link.sending = False, True
                if link.status is None:
                    link.last_heard = now
                return self._up(peer, link, now) if link.status else self._dial_due(now)
            case DialFailed(peer):
                link = self._links.setdefault(peer, _Link())
                was_missing, link.dialling, link.missing = link.missing, False, False
                self._retry_later(link, now)
                return [*([Gone(peer)] if was_missing else []), *self._dial_due(now)]
            case Heard(peer, status):
                return self._heard(peer, status, now)
            case Ended():
                return self._ended(event, now)
            case Doubted(peer):
                doubted = self._links.get(peer)
                if doubted and doubted.open and doubted.doubted_at is None and now >= doubted.not_doubted_before:
                    doubted.doubted_at, doubted.not_doubted_before = now, now + DOUBT_AGAIN_S
                return []
            case Slept(seconds):
                for link in self._links.values():
                    link.last_heard += seconds
                    if link.doubted_at is not None:
                        link.doubted_at += seconds
                return []
            case Tick():
                silent = [
                    action
                    for peer, link in sorted(self._links.items())
                    if link.open and now >= link.silent_at
                    for action in self._ended(Ended(peer, f"silent for {now - link.last_heard:.1f} s"), now)
                ]
                return silent + self._dial_due(now)
        assert_never(event)

    def _heard(self, peer: str, status: Status | None, now: float) -> list[Action]:
        link = self._links.setdefault(peer, _Link())
        link.heard(now)
        if status is None:
            return []
        first, link.status = link.status is None, status
        if not link.sending:
            if first:
                # It found us: answer at once, whatever our own retry schedule says.
                link.retry_at = now
            return self._dial_due(now)
        return self._up(peer, link, now) if first else [Changed(peer, status)]

    def _up(self, peer: str, link: _Link, now: float) -> list[Action]:
        assert link.status is not None
        if link.retry_s > RETRY_FIRST_S:
            # It was away for longer: what kept it, a partition or this peer's own cable, may have kept others.
            for other in self._links.values():
                other.retry_at = min(other.retry_at, now)
        link.missing, link.retry_s = False, RETRY_FIRST_S
        return [Up(peer, link.status), *self._dial_due(now)]

    def _ended(self, event: Ended, now: float) -> list[Action]:
        peer, link = event.peer, self._links.setdefault(event.peer, _Link())
        if link.dialling and event.half is Half.TO_PEER:
            # It broke before it was of any use.
            return self.handle(DialFailed(peer), now)
        was_up, was_open = link.up, link.open
        if event.half is not Half.FROM_PEER:
            link.sending = False
        if event.half is not Half.TO_PEER:
            link.status, link.longest_gap_s, link.doubted_at = None, 0.0, None
        if not was_open:
            return []
        actions: list[Action] = []
        if was_up:
            link.missing = not event.left
            actions.append(Down(peer, event.reason, event.left))
        if event.half is Half.BOTH:
            link.dialling = False
            actions.append(Drop(peer))
            self._retry_later(link, now, RETRY_MOST_S if event.left else link.retry_s)
        elif event.half is Half.TO_PEER:
            self._retry_later(link, now, 0.0 if link.missing else link.retry_s)
        return actions + self._dial_due(now)

    def _retry_later(self, link: _Link, now: float, after_s: float | None = None) -> None:
        link.retry_at = now + (link.retry_s if after_s is None else after_s)
        link.retry_s = min(RETRY_GROWTH * link.retry_s, RETRY_MOST_S)

    def _to_dial(self) -> dict[str, _Link]:
        """Sorted by id; of those who were never heard, the ones whose turn it is first, and no more than may be."""
        idle = {peer: link for peer, link in self._links.items() if not link.sending and not link.dialling}
        heard = {peer for peer, link in idle.items() if link.status is not None or link.missing}
        known = [peer for peer, link in idle.items() if peer not in heard and link.addresses]
        room = max(0, MOST_DIALS - sum(link.dialling for link in self._links.values()))
        known.sort(key=lambda peer: (idle[peer].retry_at, peer))
        return {peer: idle[peer] for peer in sorted((*heard, *known[:room]))}

    def _dial_due(self, now: float) -> list[Action]:
        due: list[Action] = []
        for peer, link in self._to_dial().items():
            if link.retry_at <= now:
                link.dialling = True
                due.append(Dial(peer, link.addresses))
        return due

    def _forget(self) -> None:
        idle = [peer for peer, link in self._links.items() if not (link.open or link.dialling)]
        if len(self._links) > MOST_KNOWN:
            for peer in sorted(idle, key=lambda peer: self._links[peer].last_heard)[: len(self._links) - MOST_KNOWN]:
                del self._links[peer]

    def validate(self) -> None:
        assert self.peer not in self._links
        assert not any(link.dialling and link.sending for link in self._links.values())
