"""Events of runs that never were, as a feed tells them."""

from typing import Any

BEGAN = 1_795_680_000.0
FIGURES = {
    "device": "cuda:0",
    "tokens_per_s": 12345,
    "trained_ms": 900,
    "waited_ms": 100,
    "up": 12_500_000,
    "down": 50_000_000,
    "sent_bytes": 7_000_000,
    "received_bytes": 8_000_000,
    "error_ppm": 8700,
    "strikes": 0,
}


def peers(n_members: int) -> list[str]:
    """The first contributes most."""
    return [f"12D3KooW{number:06d}" for number in range(n_members)]


def commit(outer_step: int, n_members: int, **more: Any) -> dict[str, Any]:
    """Four seconds after the one before, of which the round has taken a quarter of one."""
    return {
        "event": "outer_step_committed",
        "time": BEGAN + 4.0 * outer_step,
        "peer": peers(1)[0],
        "outer_step": outer_step,
        "attempt": 0,
        "loss": 1.0 + 4.0 / outer_step,
        "tokens": 1000 * n_members * outer_step,
        "live": n_members,
        "round_s": 0.25,
        "members": peers(n_members),
        "weights": [1000 - number for number in range(n_members)],
        "losses": [2.0] * n_members,
        "figures": [FIGURES] * n_members,
        **more,
    }


def began(outer_step: int, n_members: int) -> dict[str, Any]:
    """The round of a step, a quarter of a second before its commit."""
    return {
        "event": "round_began",
        "time": BEGAN + 4.0 * outer_step - 0.25,
        "peer": peers(1)[0],
        "outer_step": outer_step,
        "attempt": 0,
        "leader": peers(max(1, n_members))[-1],
        "members": peers(n_members),
        "codec": "int8",
    }


def members(time: float, doing: dict[str, str]) -> dict[str, Any]:
    said = {peer: {"doing": what, "outer_step": 1, "progress": 25} for peer, what in doing.items()}
    return {"event": "members", "time": time, "peer": peers(1)[0], "members": said}


def mark(kind: str, time: float, member: str, **more: Any) -> dict[str, Any]:
    return {"event": kind, "time": time, "peer": peers(1)[0], "member": member, **more}


def run_of(n_members: int, n_steps: int) -> list[dict[str, Any]]:
    """A run up to a commit."""
    both = ((began(step, n_members), commit(step, n_members)) for step in range(1, n_steps + 1))
    return [event for pair in both for event in pair]
