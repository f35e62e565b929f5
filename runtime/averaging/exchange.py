"""Shares and results in and out: what the round wants sent or fetched, and what comes, between buffers and streams."""

from collections.abc import Callable

from peers.errors import PeerError
from peers.transport import Transport
from runtime.averaging import events
from runtime.averaging.messages import Descriptor
from runtime.averaging.results import Results
from runtime.averaging.transfer import Kind, Transfers


class Exchange:
    """Carries the bulk of one peer's rounds.

    Args:
        happened: called with what is to be told to the round.
        report: called with an event's name and fields, for the log.
    """

    def __init__(
        self,
        transport: Transport,
        results: Results,
        quorum: int,
        happened: Callable[[events.Event], None],
        strike: Callable[[str, str], None],
        report: Callable[..., None],
    ) -> None:
        self.transfers = Transfers(transport, results.limit, self._on_whole, results.piece, strike)
        self._results, self._quorum = results, quorum
        self._happened, self._strike, self._report = happened, strike, report

    async def push(self, to: str, kind: Kind, descriptor: Descriptor, shard: int, data: bytes) -> None:
        try:
            await self.transfers.push(to, kind, descriptor.plan_id, shard, data)
        except PeerError as error:
            # If the peer is gone, its control streams say so; if not, the round's deadlines do.
            self._report("transfer_failed", member=to, shard=shard, reason=error.reason)

    async def fetch(self, wanted: events.Fetch) -> None:
        """Get a result from the first of its sources that has it, and tell how that went."""
        plan_id, shard = wanted.descriptor.plan_id, wanted.shard
        for source in wanted.sources:
            try:
                most_bytes = self._results.most_result_bytes(plan_id, shard)
                if most_bytes is None:
                    break
                data = await self.transfers.fetch(source, wanted.digest, most_bytes)
                # The plan may have changed meanwhile.
                if self._results.most_result_bytes(plan_id, shard) is None:
                    break
                digest = self._results.add_result(shard, data, self._quorum, None)
            except (PeerError, ValueError, TimeoutError):
                continue
            if digest == wanted.digest:
                self._happened(events.ResultReady(plan_id, shard, None, digest))
                return
        self._happened(events.FetchFailed(plan_id, shard, wanted.digest))

    def _on_whole(self, sender: str, kind: Kind, plan_id: bytes, shard: int, data: bytes) -> None:
        # The plan may have changed while the last chunk came.
        if self._results.limit(sender, kind, plan_id, shard) is None:
            return
        try:
            if kind is Kind.CONTRIBUTION:
                self._results.add_share(sender, shard, data)
                self._happened(events.ContributionArrived(plan_id, shard, sender))
            else:
                digest = self._results.add_result(shard, data, self._quorum, sender)
                self._happened(events.ResultReady(plan_id, shard, sender, digest))
        except ValueError as error:
            self._strike(sender, f"{kind.name.lower()} of shard {shard}: {error}")
