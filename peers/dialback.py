"""Whether others can dial this peer: they are asked, and dial back to where they see it, never to where it says it is.

So nobody can be made to dial a third one. Who asks names ports only, those that it listens on.
"""

import asyncio
import ipaddress
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated

from peers.errors import ProtocolViolation, Unreachable
from peers.p2pd_stream import P2pdStream
from peers.transport import Stream, Transport
from peers.wire import Codec, Length

DIALBACK_PROTOCOL = "atoll-dialback-1"
MAX_FRAME_BYTES = 1024
MOST_PORTS = 4
# Ports below belong to a machine's other services.
LEAST_PORT = 1024
# A dial across the world, with TLS; what drops it silently takes all of it.
DIAL_S = 2.0
ANSWER_S = DIAL_S + 2.0
# Of one peer; and of all together, as strangers can have any number of names.
AGAIN_S, MOST_AT_ONCE, MOST_REMEMBERED = 5.0, 4, 1024
MULTISTREAM = b"\x13/multistream/1.0.0\n"

_Ports = Annotated[tuple[int, ...], Length(0, MOST_PORTS)]


@dataclass(frozen=True)
class Ask:
    """Where to dial back: a port for TLS, 0 for none, and ports of p2pd."""

    direct: int
    ports: _Ports


@dataclass(frozen=True)
class Seen:
    """Where the asker's connection comes from, and which of its ports answered there."""

    host: Annotated[str, Length(1, 64)]
    port: int
    direct: bool
    ports: _Ports
    unix_time: float
    """By the clock of who answers."""


@dataclass(frozen=True)
class Refused:
    reason: Annotated[str, Length(0, 200)]


DIALBACK = Codec(Ask, Seen, Refused)


@dataclass(frozen=True)
class Reach:
    """How others reach a peer, as they found."""

    direct: bool
    port: int
    """At which p2pd answered, 0 if it did not."""
    hosts: tuple[str, ...] = ()
    """At which addresses they see it: one where most agree."""

    @property
    def host(self) -> str:
        """The address on which they agree, empty where they do not."""
        return self.hosts[0] if len(self.hosts) == 1 else ""

    @property
    def dialable(self) -> bool:
        """Routers open one port on request, p2pd's: then bulk comes that way."""
        return self.direct or self.port > 0


def reach_of(answers: Iterable[Seen]) -> Reach | None:
    """What more than half of those who answered found: one may lie, or sit behind a firewall that lets it dial nobody.

    Where some see the peer at a public address these alone count: whoever is behind the same router knows no better.

    None if nobody has answered.
    """
    seen = list(answers)
    seen = [one for one in seen if ipaddress.ip_address(one.host).is_global] or seen
    if not seen:
        return None

    def most(n_found: int) -> bool:
        return 2 * n_found > len(seen)

    ports = [port for port, n_found in Counter(port for one in seen for port in one.ports).items() if most(n_found)]
    hosts = Counter(one.host for one in seen)
    agreed = [host for host, n_found in hosts.items() if most(n_found)]
    direct = most(sum(one.direct for one in seen))
    return Reach(direct, ports[0] if ports else 0, tuple(agreed or sorted(hosts)))


class Dialback:
    """Serves ``DIALBACK_PROTOCOL``.

    Args: answers tells whether a peer itself answers over TLS at an address and a port.
    """

    def __init__(
        self, answers: Callable[[str, str, int], Awaitable[bool]], unix_time: Callable[[], float] = time.time
    ) -> None:
        self._answers, self._unix_time = answers, unix_time
        self._last: dict[str, float] = {}
        self._n_now = 0

    async def serve(self, stream: Stream) -> None:
        """One question and its answer. Raises: PeerError."""
        try:
            async with asyncio.timeout(ANSWER_S):
                asked = DIALBACK.decode(await stream.receive(MAX_FRAME_BYTES), stream.peer)
        except TimeoutError:
            return
        if not isinstance(asked, Ask):
            raise ProtocolViolation(stream.peer, "a question was due")
        await stream.send(DIALBACK.encode(await self._answer(stream, asked)))
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await stream.receive(1)

    async def _answer(self, stream: Stream, asked: Ask) -> Seen | Refused:
        seen = stream.seen if isinstance(stream, P2pdStream) else None
        if seen is None:
            return Refused("it is not seen at an address of its own")
        now = asyncio.get_running_loop().time()
        if now < self._last.get(stream.peer, -math.inf) + AGAIN_S:
            return Refused(f"asked less than {AGAIN_S:.0f} s ago")
        if self._n_now >= MOST_AT_ONCE:
            return Refused("busy with others")
        self._last.pop(stream.peer, None)
        self._last[stream.peer] = now
        while len(self._last) > MOST_REMEMBERED:
            del self._last[next(iter(self._last))]
        host, port = seen
        ports = [one for one in dict.fromkeys(asked.ports) if LEAST_PORT <= one < 1 << 16]
        self._n_now += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                direct = tasks.create_task(self._reaches(stream.peer, host, asked.direct))
                others = [tasks.create_task(_speaks_libp2p(host, one)) for one in ports]
        finally:
            self._n_now -= 1
        reached = tuple(one for one, task in zip(ports, others, strict=True) if task.result())
        return Seen(host, port, direct.result(), reached, self._unix_time())

    async def _reaches(self, peer: str, host: str, port: int) -> bool:
        if not LEAST_PORT <= port < 1 << 16:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(DIAL_S):
                return await self._answers(peer, host, port)
        return False


async def ask_dialback(transport: Transport, peer: str, ask: Ask) -> Seen:
    """What a connected peer sees of this one, its host an IP address, its ports some of those asked; within some 9 s.

    Raises: PeerError, Unreachable also if it refuses or does not answer.
    """
    stream = await transport.open(peer, (), DIALBACK_PROTOCOL)
    try:
        async with asyncio.timeout(ANSWER_S):
            await stream.send(DIALBACK.encode(ask))
            answer = DIALBACK.decode(await stream.receive(MAX_FRAME_BYTES), peer)
    except TimeoutError:
        raise Unreachable(peer, f"no answer in {ANSWER_S:.0f} s") from None
    finally:
        stream.close()
    match answer:
        case Seen():
            return _checked(answer, peer, ask)
        case Refused(reason):
            raise Unreachable(peer, reason)
    raise ProtocolViolation(peer, "an answer was due")


def _checked(seen: Seen, peer: str, ask: Ask) -> Seen:
    """Raises: ProtocolViolation if it is no answer to this question: this peer would tell others to dial it."""
    try:
        address = ipaddress.ip_address(seen.host)
    except ValueError:
        raise ProtocolViolation(peer, "says that it sees this peer at what is no IP address") from None
    if "%" in seen.host or address.is_unspecified or address.is_multicast or not 0 < seen.port < 1 << 16:
        raise ProtocolViolation(peer, "says that it sees this peer where nobody can be")
    if not set(seen.ports) <= set(ask.ports) or (seen.direct and not ask.direct):
        raise ProtocolViolation(peer, "says that it has dialled a port that it was not asked to dial")
    return replace(seen, host=str(address), ports=tuple(dict.fromkeys(seen.ports)))


async def _speaks_libp2p(host: str, port: int) -> bool:
    """Whether a p2pd listens there. It is not asked whose: that takes a handshake, which p2pd does for nobody else."""
    with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(DIAL_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(MULTISTREAM)
                return await reader.readexactly(len(MULTISTREAM)) == MULTISTREAM
            finally:
                writer.transport.abort()
    return False
