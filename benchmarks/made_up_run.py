"""A run that nobody trains, told as a member of one would tell it: for what shows runs, at any size and pace."""

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

from runtime.log import Event

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
DEVICES = ("cuda", "cuda", "cuda", "cpu")


class MadeUpRun:
    """``n_members`` come in over the first steps; some leave, some are struck, all as the seed has it.

    Args:
        step_s: from one commit to the next, of which the last eighth is spent averaging.
        steadily: nobody comes or goes after the first step.
    """

    def __init__(self, n_members: int, step_s: float, seed: int = 0, steadily: bool = False) -> None:
        self._random = random.Random(seed)
        self._step_s, self._steadily = step_s, steadily
        signs = ["".join(self._random.choices(ALPHABET, k=44)) for _ in range(n_members)]
        self._waiting = [f"12D3KooW{sign}" for sign in signs]
        self._present: dict[str, dict[str, Any]] = {}
        self._step, self._tokens, self._began_at = 0, 0, 0.0
        self._teller = self._waiting[0]

    def past(self, n_steps: int, until: float) -> Iterator[Event]:
        """The steps before a time, one after another."""
        yield self._event("run", until, manifest="")
        spans = [self._step_s * self._random.uniform(0.9, 1.12) for _ in range(n_steps)]
        for number in range(n_steps):
            time = until - sum(spans[number + 1 :])
            yield from self._come_and_go(time)
            yield self._commit(time)
            yield from self._validated(time)
        yield self.members(until)
        yield self._event("live", until)

    async def live(self, see: Callable[[Event], None], clock: Callable[[], float], n_steps: int = 1 << 30) -> None:
        """Goes on in real time, and tells at least once a second what everyone does."""
        for _ in range(n_steps):
            began = self._began_at = self._began_at or clock()
            for event in self._come_and_go(began):
                see(event)
            averaging = False
            while (at := clock() - began) < self._step_s:
                if at > 0.875 * self._step_s and not averaging:
                    averaging = True
                    see(self._round(clock()))
                see(self.members(clock()))
                await asyncio.sleep(min(1.0, max(0.25, self._step_s / 16), self._step_s - at + 0.001))
            see(self._commit(clock()))
            for event in self._validated(clock()):
                see(event)

    def members(self, time: float) -> Event:
        """Who is there and what each does at a time of the step."""
        part = min(1.0, max(0.0, (time - self._began_at) / self._step_s)) if self._began_at else 0.0
        said = {
            peer: {"doing": self._doing(one, part), "outer_step": self._step, "progress": 25 * one["steps"]}
            for peer, one in self._present.items()
        }
        return self._event("members", time, members=said)

    def _doing(self, one: dict[str, Any], part: float) -> str:
        if one["auxiliary"]:
            return "auxiliary"
        if one["joins"] > self._step:
            return "joining"
        if part >= 0.875:
            return "averaging"
        return "training" if part < 0.86 * one["pace"] else "ready"

    def _come_and_go(self, time: float) -> Iterator[Event]:
        draw = self._random
        arriving = len(self._waiting) if self._steadily else draw.choice((0, 0, 0, 1, 1, 1 + len(self._waiting) // 12))
        if not self._present:
            arriving = max(1, arriving, len(self._waiting) // 3)
        for _ in range(min(arriving, len(self._waiting))):
            peer = self._waiting.pop(0)
            self._present[peer] = {
                "device": draw.choice(DEVICES),
                "rate": math.exp(draw.gauss(8.5, 0.6)),
                "pace": min(1.0, draw.betavariate(9, 2)),
                "auxiliary": draw.random() < 0.03 and peer != self._teller,
                "joins": self._step + (2 if self._step else 0),
                "steps": 0,
                "sent": 0,
            }
            yield self._event("member_up", time, member=peer)
        if self._steadily or len(self._present) < 2:
            return
        if draw.random() < 0.04:
            peer = draw.choice([peer for peer in self._present if peer != self._teller])
            del self._present[peer]
            self._waiting.append(peer)
            yield self._event(
                "member_down",
                time,
                member=peer,
                reason=draw.choice(("left: the user stopped it", "left: its hours are over", "end of stream")),
            )
        if draw.random() < 0.008:
            peer = draw.choice(list(self._present))
            yield self._event("strike", time, member=peer, reason="sent a share of the wrong length")
        if draw.random() < 0.006:
            yield self._event("member_still", time, member=draw.choice(list(self._present)))

    def _round(self, time: float) -> Event:
        return self._event(
            "round_began",
            time,
            outer_step=self._step + 1,
            attempt=0,
            leader=self._random.choice(list(self._present)),
            members=sorted(self._present),
            reducers=[],
            codec="int8",
        )

    def _commit(self, time: float) -> Event:
        draw = self._random
        self._step += 1
        curve = 1.35 + 4.2 * (1 + self._step / 6) ** -0.62
        peers = sorted(
            peer
            for peer, one in self._present.items()
            if not one["auxiliary"] and one["joins"] < self._step and (self._steadily or draw.random() < 0.985)
        ) or [self._teller]
        weights, losses, figures = [], [], []
        for peer in peers:
            one = self._present[peer]
            trained_s = self._step_s * (0.72 + 0.2 * one["pace"]) * draw.uniform(0.97, 1.0)
            one["steps"] += 1
            one["sent"] += round(1.4e6 * draw.uniform(0.97, 1.03))
            weights.append(round(one["rate"] * trained_s))
            losses.append(round(curve + draw.gauss(0, 0.03), 4))
            figures.append(
                {
                    "device": one["device"],
                    "tokens_per_s": round(one["rate"] * draw.uniform(0.95, 1.05)),
                    "trained_ms": round(1e3 * trained_s),
                    "waited_ms": round(1e3 * (self._step_s - trained_s)),
                    "up": round(one["rate"] * 900),
                    "down": round(one["rate"] * 2500),
                    "sent_bytes": one["sent"],
                    "received_bytes": round(1.04 * one["sent"]),
                    "error_ppm": round(8900 + draw.gauss(0, 160)),
                    "strikes": 0,
                }
            )
        self._tokens += sum(weights)
        self._began_at = time
        return self._event(
            "outer_step_committed",
            time,
            outer_step=self._step,
            attempt=0,
            lineage=f"{self._step:064x}",
            loss=round(sum(losses) / len(losses), 4),
            tokens=self._tokens,
            live=sum(not one["auxiliary"] for one in self._present.values()),
            round_s=round(self._step_s * 0.11 * math.exp(draw.gauss(0, 0.16)), 4),
            members=peers,
            weights=weights,
            losses=losses,
            figures=figures,
        )

    def _validated(self, time: float) -> Iterator[Event]:
        if self._step % 10 == 0:
            loss = 1.38 + 4.2 * (1 + self._step / 6) ** -0.62 + self._random.gauss(0, 0.01)
            yield self._event("validated", time, outer_step=self._step, val_loss=round(loss, 4))

    def _event(self, kind: str, time: float, **fields: object) -> Event:
        return {"event": kind, "time": round(time, 4), "peer": self._teller, **fields}
