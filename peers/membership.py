"""Which peers of the run are known, dialled, linked and silent: a pure machine.

A link is up while this peer has a control stream to the other and hears one from it. The end of either stream is the
other's death, now; silence for ``SILENCE_S`` is taken as death too. Where a peer is only known from a record, it is
dialled, and dialled again ever more rarely.
"""

from dataclasses import dataclass, field
from typing import assert_never

from peers.messages import Addresses, Status

HEARTBEAT_S = 1.0
# Three missed heartbeats and a half: a busy two-core machine was seen to delay one by 0.9 s.
SILENCE_S = 3.5 * HEARTBEAT_S
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 60.0
# Dead peers whose records have not expired yet are forgotten beyond this many, oldest contact first.
MOST_KNOWN = 1024


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


@dataclass(frozen=True)
class Ended:
    """A control stream to or from the peer has ended, or the peer said goodbye (``left``)."""

    peer: str
    reason: str
    left: bool = False


@dataclass(frozen=True)
class Tick:
    pass


Event = Known | DialFailed | Dialled | Heard | Ended | Tick


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
    """Close what is left of the link; the peer was linked before, so others are told."""

    peer: str
    reason: str


@dataclass(frozen=True)
class Drop:
    """Close what is left of a link that never came up."""

    peer: str


Action = Dial | Up | Changed | Down | Drop


@dataclass
class _Link:
    addresses: Addresses = ()
    dialling: bool = False
    sending: bool = False
    status: Status | None = None
    last_heard: float = 0.0
    retry_at: float = 0.0
    retry_s: float = RETRY_FIRST_S

    @property
    def open(self) -> bool:
        return self.sending or self.status is not None

    @property
    def up(self) -> bool:
        return self.sending and self.status is not None


@dataclass
class Membership:
    """``handle(event, now)`` takes loop time in seconds and never raises because of a peer."""

    peer: str
    _links: dict[str, _Link] = field(default_factory=dict)

    def members(self) -> dict[str, Status]:
        """The linked peers, sorted by id, with the last status of each."""
        return {peer: link.status for peer, link in sorted(self._links.items()) if link.sending and link.status}

    def addresses(self) -> tuple[str, ...]:
        """Where the linked peers said that they can be dialled."""
        return tuple(address for _, link in sorted(self._links.items()) if link.up for address in link.addresses)

    def next_deadline(self) -> float | None:
        deadlines = [link.last_heard + SILENCE_S for link in self._links.values() if link.open]
        deadlines += [link.retry_at for link in self._links.values() if self._dialable(link)]
        return min(deadlines, default=None)

    def handle(self, event: Event, now: float) -> list[Action]:
        if not isinstance(event, Tick) and event.peer == self.peer:
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
                return [Up(peer, link.status)] if link.status else []
            case DialFailed(peer):
                link = self._links.setdefault(peer, _Link())
                link.dialling = False
                self._retry_later(link, now)
                return []
            case Heard(peer, status):
                return self._heard(peer, status, now)
            case Ended(peer, reason, left):
                return self._ended(peer, reason, left, now)
            case Tick():
                silent = [
                    action
                    for peer, link in sorted(self._links.items())
                    if link.open and now >= link.last_heard + SILENCE_S
                    for action in self._ended(peer, f"silent for {now - link.last_heard:.1f} s", False, now)
                ]
                return silent + self._dial_due(now)
        assert_never(event)

    def _heard(self, peer: str, status: Status | None, now: float) -> list[Action]:
        link = self._links.setdefault(peer, _Link())
        link.last_heard = now
        if status is None:
            return []
        first, link.status = link.status is None, status
        if not link.sending:
            if first:
                # It found us: answer at once, whatever our own retry schedule says.
                link.retry_at = now
            return self._dial_due(now)
        link.retry_s = RETRY_FIRST_S
        return [Up(peer, status)] if first else [Changed(peer, status)]

    def _ended(self, peer: str, reason: str, left: bool, now: float) -> list[Action]:
        link = self._links.setdefault(peer, _Link())
        was_up, had_any = link.up, link.open
        link.sending, link.status = False, None
        # Down and Drop close what is left of the link, and that is a dial as well.
        link.dialling = link.dialling and not had_any
        self._retry_later(link, now, RETRY_MOST_S if left else link.retry_s)
        if was_up:
            return [Down(peer, reason)]
        return [Drop(peer)] if had_any else []

    def _retry_later(self, link: _Link, now: float, after_s: float | None = None) -> None:
        link.retry_at = now + (link.retry_s if after_s is None else after_s)
        link.retry_s = min(2 * link.retry_s, RETRY_MOST_S)

    def _dialable(self, link: _Link) -> bool:
        return not link.sending and not link.dialling and (bool(link.addresses) or link.status is not None)

    def _dial_due(self, now: float) -> list[Action]:
        due: list[Action] = []
        for peer, link in sorted(self._links.items()):
            if self._dialable(link) and link.retry_at <= now:
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
