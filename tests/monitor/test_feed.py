"""What those who watch are told, that they are bounded, and that who does not read is cut off."""

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from virtual_clock import run_virtual

from peers.errors import StreamClosed
from peers.memory import MemoryNetwork
from peers.transport import Frame, Stream
from runtime.log import Event, parse_events
from runtime.monitor.feed import MAX_FRAME_BYTES, MOST_QUEUED, MOST_WATCHERS, WATCH_PROTOCOL, Feed, greeting, past_of
from runtime.monitor.history import History

RUN = "7" * 40


def commit(step: int) -> dict[str, Any]:
    return {"event": "outer_step_committed", "time": 100.0 + step, "peer": "ann", "outer_step": step}


class Place:
    def __init__(self) -> None:
        self.network = MemoryNetwork(random.Random(0))
        self.history = History()
        self.feed = Feed("ann", RUN, b"sealed", self.history, lambda: {"ann": {"doing": "training"}})

    async def watch(self, name: str, since: int = 0, run_id: str = RUN) -> Stream:
        stream = await self.network.transport(name).open("ann", (), WATCH_PROTOCOL)
        await stream.send(greeting(run_id, since))
        return stream

    async def told(self, stream: Stream, until: str) -> list[Event]:
        events: list[Event] = []
        while not events or events[-1]["event"] != until:
            events += parse_events(await stream.receive(MAX_FRAME_BYTES))
        return events


def run(scenario: Callable[[Place], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        here = Place()
        await here.network.transport("ann").serve(WATCH_PROTOCOL, here.feed.serve)
        telling = asyncio.create_task(here.feed.keep_telling())
        async with asyncio.timeout(600):
            await scenario(here)
        telling.cancel()

    run_virtual(main())


def test_the_past_comes_first_and_then_what_happens() -> None:
    async def scenario(here: Place) -> None:
        for step in range(1, 1001):
            here.history.add(commit(step))
        stream = await here.watch("eve")
        past = await here.told(stream, "live")
        assert past[0]["event"] == "run"
        assert [event["outer_step"] for event in past if "outer_step" in event] == list(range(1, 1001))
        assert past[-2]["members"] == {"ann": {"doing": "training"}}
        here.feed.tell(commit(1001))
        assert (await here.told(stream, "outer_step_committed"))[-1]["outer_step"] == 1001
        assert (await here.told(stream, "members"))[-1]["peer"] == "ann"

    run(scenario)


def test_who_was_cut_off_hears_only_what_it_has_missed() -> None:
    async def scenario(here: Place) -> None:
        for step in range(1, 11):
            here.history.add(commit(step))
        past = await here.told(await here.watch("eve", since=7), "live")
        assert [event["outer_step"] for event in past if "outer_step" in event] == [8, 9, 10]

    run(scenario)


@pytest.mark.parametrize("said", [b"", b"{}", b"[" * 1000, json.dumps({"run_id": "8" * 40, "since": 0}).encode()])
def test_who_does_not_ask_for_this_run_is_refused_politely(said: bytes) -> None:
    async def scenario(here: Place) -> None:
        stream = await here.network.transport("eve").open("ann", (), WATCH_PROTOCOL)
        await stream.send(said)
        assert (await here.told(stream, "refused"))[-1]["reason"] == "not a watcher of this run"
        with pytest.raises(StreamClosed):
            await stream.receive(1)

    run(scenario)


def test_there_are_only_so_many_and_who_goes_makes_room() -> None:
    async def scenario(here: Place) -> None:
        streams = [await here.watch(f"eve{number}") for number in range(MOST_WATCHERS)]
        for stream in streams:
            await here.told(stream, "live")
        one_more = await here.watch("mallory")
        assert "watch here already" in (await here.told(one_more, "refused"))[-1]["reason"]
        streams[0].close()
        await asyncio.sleep(3.0)
        assert here.feed.n_watchers == MOST_WATCHERS - 1
        await here.told(await here.watch("mallory"), "live")

    run(scenario)


class Deaf:
    """A stream to a watcher that greets and then takes nothing: what is sent to it waits for ever."""

    peer = "deaf"

    async def receive(self, max_bytes: int) -> bytes:
        return greeting(RUN, 0)

    async def receive_into(self, buffer: memoryview) -> int:
        raise NotImplementedError

    async def send(self, *parts: Frame) -> None:
        await asyncio.Event().wait()

    def close(self) -> None: ...


def test_who_does_not_read_is_cut_off_and_the_others_hear_everything() -> None:
    async def scenario(here: Place) -> None:
        good = await here.watch("good")
        deaf = asyncio.create_task(here.feed.serve(Deaf()))
        await here.told(good, "live")
        heard: list[int] = []
        for step in range(1, 4 * MOST_QUEUED):
            here.feed.tell(commit(step))
            while step % 16 == 0 and heard[-1:] != [step]:
                events = parse_events(await good.receive(MAX_FRAME_BYTES))
                heard += [event["outer_step"] for event in events if event["event"] == "outer_step_committed"]
        assert heard == list(range(1, 4 * MOST_QUEUED - 15))
        await deaf
        assert here.feed.n_watchers == 1

    run(scenario)


def test_what_happens_soon_after_a_frame_is_in_the_next_one() -> None:
    async def scenario(here: Place) -> None:
        watcher = await here.watch("watcher")
        await here.told(watcher, "live")
        frames: list[int] = []
        for step in range(1, 41):
            here.feed.tell(commit(step))
            await asyncio.sleep(0.05)
        while sum(frames) < 40:
            told = parse_events(await watcher.receive(MAX_FRAME_BYTES))
            frames.append(sum(event["event"] == "outer_step_committed" for event in told))
        # Two seconds: one at once, then one each half a second.
        assert frames[0] == 1
        assert len(frames) <= 6

    run(scenario)


def test_a_newcomer_learns_the_past_from_a_member() -> None:
    async def scenario(here: Place) -> None:
        for step in range(1, 20):
            here.history.add(commit(step))
        late = History()
        late.merge(await past_of("ann", here.network.transport("late"), RUN))
        assert late.since(0) == here.history.since(0)

    run(scenario)
