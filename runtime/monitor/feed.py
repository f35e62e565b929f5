"""What a member tells those who watch: the run's past first, then each event as it happens, and what everyone is doing.

A stream of JSON lines, of the kinds in docs/events.md and three more: ``run`` first, with the signed manifest, then
what is past, ``live`` when all of that has been told, and ``members`` at least once a second. Nobody who watches
decides anything, and who does not read is cut off.
"""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterable

from peers.errors import PeerError, ProtocolViolation
from peers.transport import Stream, Transport
from runtime.log import Event, parse_events
from runtime.monitor.history import History

WATCH_PROTOCOL = "atoll-watch-1"
MAX_GREETING_BYTES = 1 << 10
MAX_FRAME_BYTES = 1 << 20
# Of the past, so many bytes in a frame: one is written while others wait.
PAST_FRAME_BYTES = 1 << 16
MOST_WATCHERS = 32
MOST_QUEUED = 512
# And a frame to each at most as often: it costs more than what is in it, so what happens after one goes into the next.
EVERY_S = 1.0
GREETING_TIMEOUT_S = 5.0
# Who takes nothing for so long is cut off, and who tells nothing of the past, or not all of it by then, is not heard.
SEND_TIMEOUT_S, PAST_TIMEOUT_S = 10.0, 300.0
MOST_PAST_BYTES = 16 << 20
# Not for others: what is said on this machine about this machine.
OWN_AFFAIRS = frozenset(("log_failed", "manifest_failed", "join_failed"))


class Feed:
    """The watchers of one peer.

    Args:
        sealed_manifest: of the run.
        doing: by peer what it is at; see ``Averager.doing``.
    """

    def __init__(
        self,
        peer: str,
        run_id: str,
        sealed_manifest: bytes,
        history: History,
        doing: Callable[[], dict[str, dict[str, object]]],
    ) -> None:
        self._peer, self._run_id, self._history, self._doing = peer, run_id, history, doing
        self._manifest = base64.b64encode(sealed_manifest).decode()
        self._queues: set[asyncio.Queue[bytes | None]] = set()

    @property
    def n_watchers(self) -> int:
        return len(self._queues)

    def tell(self, event: Event) -> None:
        """Something has happened."""
        if self._queues and event.get("event") not in OWN_AFFAIRS:
            self._enqueue(_lines([event]))

    async def keep_telling(self) -> None:
        """What everyone is doing, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            if self._queues:
                self._enqueue(_lines([self._members()]))

    async def serve(self, stream: Stream) -> None:
        """One watcher, until it goes."""
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                since = self._greeting(await stream.receive(MAX_GREETING_BYTES))
            if since is None or len(self._queues) >= MOST_WATCHERS:
                reason = "not a watcher of this run" if since is None else f"{MOST_WATCHERS} watch here already"
                await _send(stream, _lines([self._event("refused", reason=reason)]))
                return
            queue: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_QUEUED)
            self._queues.add(queue)
            try:
                await self._tell_past(stream, since)
                await _tell(stream, queue)
            finally:
                self._queues.discard(queue)
        except (PeerError, TimeoutError):
            return

    def _greeting(self, greeting: bytes) -> int | None:
        """The outer step since which a watcher wants to know, None if that is not what it says."""
        try:
            wanted = json.loads(greeting)
            since = wanted["since"]
            return since if wanted["run_id"] == self._run_id and isinstance(since, int) else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    async def _tell_past(self, stream: Stream, since: int) -> None:
        await _send(stream, _lines([self._event("run", manifest=self._manifest)]))
        batch, n_bytes = [], 0
        for event in self._history.since(since):
            line = _lines([event])
            batch.append(line)
            n_bytes += len(line)
            if n_bytes > PAST_FRAME_BYTES:
                await _send(stream, *batch)
                batch, n_bytes = [], 0
        await _send(stream, *batch, _lines([self._members(), self._event("live")]))

    def _members(self) -> Event:
        return self._event("members", members=self._doing())

    def _event(self, kind: str, **fields: object) -> Event:
        return {"event": kind, "time": round(time.time(), 4), "peer": self._peer, **fields}

    def _enqueue(self, lines: bytes) -> None:
        for queue in list(self._queues):
            if queue.full():
                # It does not read. Its stream is closed by the word to end, for which there is room now.
                self._queues.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(lines)


async def _tell(stream: Stream, queue: asyncio.Queue[bytes | None]) -> None:
    """What is queued, as it comes, until the word to end."""
    while (lines := await queue.get()) is not None:
        while len(lines) < PAST_FRAME_BYTES and not queue.empty():
            if (more := queue.get_nowait()) is None:
                return
            lines += more
        await _send(stream, lines)
        await asyncio.sleep(EVERY_S)


async def _send(stream: Stream, *parts: bytes) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await stream.send(*parts)


async def past_of(peer: str, transport: Transport, run_id: str) -> list[Event]:
    """The past of the run as a member knows it.

    Raises: PeerError; TimeoutError.
    """
    events: list[Event] = []
    n_bytes = 0
    async with asyncio.timeout(PAST_TIMEOUT_S):
        stream = await transport.open(peer, (), WATCH_PROTOCOL)
        try:
            await stream.send(greeting(run_id, 0))
            while not events or events[-1]["event"] not in ("live", "refused"):
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    lines = await stream.receive(MAX_FRAME_BYTES)
                n_bytes += len(lines)
                if n_bytes > MOST_PAST_BYTES:
                    raise ProtocolViolation(peer, f"tells a past of more than {MOST_PAST_BYTES} bytes")
                events += parse_events(lines)
        finally:
            stream.close()
    return events


def greeting(run_id: str, since: int) -> bytes:
    """The first frame of a watcher that knows all up to an outer step."""
    return json.dumps({"run_id": run_id, "since": since}).encode()


def _lines(events: Iterable[Event]) -> bytes:
    return b"".join(json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in events)
