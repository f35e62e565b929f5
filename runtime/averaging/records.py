"""What the event log says of a commit and of the end of a fork; docs/events.md explains each field."""

from collections.abc import Sequence
from dataclasses import asdict

from runtime.averaging.claims import Claim
from runtime.averaging.messages import Commit, MemberEntry
from runtime.averaging.own_state import OwnState
from runtime.state import State


def commit_fields(commit: Commit, included: Sequence[MemberEntry], own: OwnState) -> dict[str, object]:
    """What every member says alike of a commit that has just been applied.

    Args:
        included: those whose contributions are in it.
    """
    figures = [None if entry.figures is None else asdict(entry.figures) for entry in included]
    counted = [(entry.weight, entry.loss) for entry in included if entry.loss is not None and entry.weight]
    tokens = sum(weight for weight, _ in counted)
    return {
        "outer_step": own.outer_step,
        "attempt": commit.descriptor.attempt,
        "lineage": own.lineage.hex(),
        "anchor_sha256": own.pieces.anchor_digest.hex(),
        "members": [entry.peer for entry in included],
        "weights": [entry.weight for entry in included],
        "losses": [entry.loss for entry in included],
        "figures": figures,
        "tokens": own.tokens,
        "loss": sum(weight * loss for weight, loss in counted) / tokens if tokens else None,
    }


def fork_fields(left: Claim, state: State) -> dict[str, object]:
    """Of a peer that has gone over from its own history to a heavier one."""
    return {
        "outer_step": state.outer_step,
        "lineage": state.lineage.hex(),
        "left_outer_step": left.outer_step,
        "left_lineage": left.lineage.hex(),
        "left_tokens": left.tokens,
        "tokens": state.tokens,
    }
