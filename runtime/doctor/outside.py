"""What members say of this machine from outside, in words: whether they can dial it, its NAT, its clock, its link."""

import statistics
from collections.abc import Collection, Sequence

from peers.dialback import LEAST_PORT, Reach, Seen
from runtime.doctor.check import Check, failed, passed, warned
from runtime.monitor.words import duration_words

# A peer's record in the run's table lives three hours, and a reader allows for an hour.
SKEW_WARN_S, SKEW_FAIL_S = 300.0, 3600.0
# Below this a round of the smallest real models takes a minute.
SLOW_BYTES_PER_S = 1e6 / 8


def check_reach(reach: Reach | None, port: int, direct_port: int) -> Check:
    """Args: port is p2pd's, direct_port the one beside it where bulk comes in."""
    if reach is None:
        return warned("reach", "no member could be asked whether it can dial this machine", "try again in a minute")
    at = f" at {reach.host}" if reach.host else ""
    if reach.direct and reach.port:
        return passed("reach", f"members can dial this machine{at}, ports {reach.port} and {direct_port}")
    router = f"have your router pass TCP ports {port} and {direct_port} on to this machine, and say --port {port}"
    if port < LEAST_PORT:
        router = f"say --port with {LEAST_PORT} or above: members dial none below it"
    if reach.port:
        words = f"members can dial port {reach.port}{at}, but not {direct_port}: bulk to this machine goes the slow way"
        return warned("reach", words, router)
    if reach.direct:
        words = f"members can dial port {direct_port}{at}, but not {port}: nobody can be invited with this machine"
        return warned("reach", words, router)
    words = f"nobody can dial this machine{at}: it takes part and contributes, but reduces nothing for others"
    return warned("reach", words, f"nothing has to be done; to help more, {router}")


def check_nat(answers: Sequence[Seen], own_hosts: Collection[str]) -> Check:
    """As far as it can be told from where members see one and the same socket.

    Args: answers of several members; own_hosts are this machine's addresses.
    """
    if not answers:
        return warned("nat", "no member could be asked where it sees this machine", "try again in a minute")
    outside = [seen for seen in answers if seen.host not in own_hosts]
    if not outside:
        return passed("nat", f"none: members see this machine at its own address, {answers[0].host}")
    hosts = sorted({seen.host for seen in outside})
    where = f"members see this machine at {', '.join(hosts)}, which is not its own address"
    if len(outside) == 1:
        return passed("nat", f"{where}; what kind of NAT it is one member alone cannot tell")
    if len(hosts) > 1:
        return passed("nat", f"{where}; as it has several, there is no telling what kind of NAT it is")
    if len({seen.port for seen in outside}) == 1:
        return passed("nat", f"{where}; the NAT keeps one port for all of them (endpoint-independent, a cone)")
    return passed("nat", f"{where}; the NAT has another port for each of them (it looks symmetric)")


def check_clock(ahead_s: Sequence[float]) -> Check:
    """Args: by how much this machine's clock is ahead of each member's, seconds."""
    if not ahead_s:
        return warned("clock", "no member could be asked for the time", "try again in a minute")
    skew = statistics.median(ahead_s)
    side = "ahead of" if skew > 0 else "behind"
    words = f"{duration_words(abs(skew))} {side} the members' (median of {len(ahead_s)})"
    fix = "set the clock: timedatectl set-ntp true"
    if abs(skew) > SKEW_FAIL_S:
        return failed("clock", f"{words}: to them what this machine announces is out of date or not yet true", fix)
    if abs(skew) > SKEW_WARN_S:
        return warned("clock", f"{words}; beyond an hour they would not find this machine", fix)
    return passed("clock", words)


def check_rate(rates: tuple[int, int] | None, member: str, reason: str = "") -> Check:
    """Args: rates up and down in bytes a second, 0 for not known; else the reason why there are none."""
    if rates is None:
        return warned("rate", f"not measured: {reason}", "try again in a minute")
    up, down = (f"{8 * rate / 1e6:.3g} Mbit/s" if rate else "too quick to tell" for rate in rates)
    words = f"{up} up, {down} down, with member {member[-6:]}"
    if any(0 < rate < SLOW_BYTES_PER_S for rate in rates):
        return warned("rate", words, "use a cable instead of Wi-Fi, or another link; the others wait for slow peers")
    return passed("rate", words)
