"""The one place where a peer's state changes: a committed step is applied, or a member's state is gone over to."""

import asyncio
from collections.abc import Awaitable, Callable

from runtime.averaging.arithmetic import in_thread
from runtime.averaging.claims import Claim
from runtime.averaging.events import StepBegun
from runtime.averaging.exchange import Exchange
from runtime.averaging.figures import OwnFigures
from runtime.averaging.joining import Joined, Joining
from runtime.averaging.messages import Commit
from runtime.averaging.own_state import MOST_STALE, OwnState
from runtime.averaging.phases import InnerPhases
from runtime.averaging.post import Post
from runtime.averaging.records import commit_fields, fork_fields
from runtime.averaging.results import Results
from runtime.averaging.round import Round
from runtime.state import State
from runtime.tasks import whole


class Applying:
    """Stops training, changes the state, says so, and lets training go on from there.

    State, lineage and counter change together or not at all: who is cancelled meanwhile leaves with all of it.

    Args:
        announce: tells all members of the state that is present now.
        committed: awaited with each new state, before training goes on from it.
        abandoned: called with a copy of the state of a fork that is left; where it is kept, for the log.
    """

    def __init__(
        self,
        machine: Round,
        own: OwnState,
        results: Results,
        exchange: Exchange,
        joining: Joining,
        phases: InnerPhases,
        figures: OwnFigures,
        post: Post,
        last_outer_step: int,
        announce: Callable[[], None],
        report: Callable[..., None],
        committed: Callable[[], Awaitable[None]],
        abandoned: Callable[[State], str],
    ) -> None:
        self._machine, self._own, self._results, self._joining = machine, own, results, joining
        self._transfers, self._phases, self._figures, self._post = exchange.transfers, phases, figures, post
        self._last_outer_step, self._announce, self._report = last_outer_step, announce, report
        self._committed, self._abandoned = committed, abandoned

    @property
    def finished(self) -> bool:
        """Whether this peer has the run's last outer step."""
        return self._own.outer_step >= self._last_outer_step

    def begin(self) -> StepBegun:
        """Go on from the state that this peer has."""
        begun = self._step_begun(loaded=True)
        self._train_on()
        return begun

    async def apply(self, commit: Commit) -> StepBegun:
        """Take the outer step that was committed."""
        await self._phases.pause()
        return await whole(self._apply(commit))

    async def go_over(self, joined: Joined) -> StepBegun | None:
        """Go on from a member's state; None if a commit was quicker than its download."""
        state, old = joined.state, self._own.claim()
        if self._own.established and (state is None or state.position <= old.position):
            return None
        await self._phases.pause()
        return await whole(self._go_on_from(joined, old))

    async def _apply(self, commit: Commit) -> StepBegun:
        peers, peer = commit.descriptor.peers, self._machine.peer
        me = peers.index(peer) if peer in peers else None
        mean_P, contributors = self._results.mean(commit)
        self._post.keep(commit)
        own_P = self._results.own_P if self._machine.contributes else None
        included, error = await self._own.advance(commit, mean_P, contributors, me, own_P, self._results.own_share)
        self._figures.error = error
        self._report(
            "outer_step_committed",
            **commit_fields(commit, included, self._own),
            live=self._machine.n_live,
            **self._figures.of_round(asyncio.get_running_loop().time(), took_part=me is not None),
            state_bytes_sent=self._joining.bytes_sent,
            quantisation_error=error,
        )
        if own_P is not None and self._own.stale == MOST_STALE + 1:
            self._report("work_dropped", outer_step=self._own.outer_step, outer_steps=self._own.stale)
        self._results.forget_step()
        self._transfers.round_over()
        begun = self._step_begun()
        await self._committed()
        self._train_on()
        return begun

    async def _go_on_from(self, joined: Joined, old: Claim) -> StepBegun:
        state, kept = joined.state, ""
        if state is not None:
            if joined.forked is not False:
                kept = self._abandoned(await in_thread(self._own.copy))
                self._results.forget_past()
            await self._own.load(state)
            # What came with it says how fast this peer's link is.
            self._transfers.round_over()
            self._joining.offers.only(state.lineage)
            if joined.forked:
                self._report("fork_healed", member=self._machine.peer, **fork_fields(old, state), kept=kept)
        self._results.forget_step()
        self._joining.active = False
        begun = self._step_begun(loaded=True)
        if state is not None:
            # What was downloaded is not to be fetched again by a process that dies in its first phase.
            await self._committed()
        self._train_on()
        self._report("joined", outer_step=self._own.outer_step, lineage=self._own.lineage.hex(), kept=kept)
        return begun

    def _step_begun(self, loaded: bool = False) -> StepBegun:
        """This peer has a state: say so."""
        if loaded:
            self._own.claims.clear()
        claim = self._own.stand_by()
        self._joining.offers.trim(asyncio.get_running_loop().time())
        self._own.established = True
        self._announce()
        group = frozenset(claim.group)
        return StepBegun(claim.outer_step, claim.lineage, claim.state, claim.tokens, group, loaded)

    def _train_on(self) -> None:
        """From this state, unless the run is over."""
        if not self.finished:
            self._figures.begun(asyncio.get_running_loop().time())
            self._phases.go()
