"""The checks that need the network: as a stranger to the run, under a key of this moment, in no table.

The run's members are asked what they see; none of them counts this process as one of theirs.
"""

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from peers.addresses import if_free, tcp_endpoint
from peers.daemon import end_tasks
from peers.direct import DirectTransport
from peers.discovery import DhtDiscovery
from peers.errors import NetworkError, PeerError
from peers.identity import Identity
from peers.messages import PROTOCOL_VERSION
from peers.p2pd import P2pdTransport
from peers.rate import RATE_PROTOCOL, measure_rates
from peers.reaching import ENOUGH, Reaching
from peers.records import is_own
from peers.relay import RelayedTransport
from runtime.doctor.check import Check, failed, passed, warned
from runtime.doctor.outside import check_clock, check_nat, check_rate, check_reach
from runtime.errors import ConfigError
from runtime.finding import Finder
from runtime.invite import Invite
from runtime.manifest import Manifest

NAME_S, DIAL_S, MANIFEST_S = 3.0, 3.0, 5.0
# A slow link is looked at for 3 s each way; several members may have to be asked.
RATE_S = 12.0


class Visit:
    """One look at a run from outside.

    Args: known is called with the run's manifest, once a member has given it.
    """

    def __init__(
        self, invite: Invite, host: str, port: int, known: Callable[[Manifest], object] = lambda manifest: None
    ) -> None:
        self._invite, self._host, self._port, self._known = invite, host, port, known

    async def checks(self) -> AsyncIterator[Check]:
        """Each as soon as it is there: as a rule within 15 s in all, in a minute where nothing answers."""
        yield await check_names(self._invite)
        bootstrap = await check_bootstrap(self._invite)
        yield bootstrap
        async with AsyncExitStack() as stack:
            try:
                p2pd, direct, relayed = await self._go_online(stack)
                # Asked by nobody: a table is not to count on who is gone in a moment.
                discovery = await DhtDiscovery.create(p2pd, self._invite.addresses, True, is_own)
                stack.push_async_callback(discovery.close)
            except NetworkError as error:
                yield failed("libp2p", str(error), "see the line before" if bootstrap.fix else "look at the sentence")
                return
            finder = Finder(p2pd, discovery, self._invite.run_id, self._invite.addresses)
            yield await self._check_run(finder)
            members = await self._connect(p2pd, finder)
            reaching = Reaching(p2pd, direct, relayed)
            await reaching.ask([peer for peer, _ in members])
            endpoints = [found for address in await p2pd.addresses() if (found := tcp_endpoint(address))]
            port = endpoints[0][1] if endpoints else 0
            yield check_reach(reaching.found, port, direct.port)
            answers = reaching.answered
            yield check_nat([seen for _, seen in answers], {own_host(seen.host) for _, seen in answers})
            # What an answer was on its way for is not worth mentioning here.
            began = time.time() - asyncio.get_running_loop().time()
            yield check_clock([began + at - seen.unix_time for at, seen in answers])
            yield await _check_rate(p2pd, members)

    async def _go_online(self, stack: AsyncExitStack) -> tuple[P2pdTransport, DirectTransport, RelayedTransport]:
        key = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atoll-doctor-"))) / "key"
        Identity.generate().save(key)
        kind = "ip6" if ":" in self._host else "ip4"
        port = if_free(self._host, self._port)
        p2pd = await P2pdTransport.create(
            key, listen=[f"/{kind}/{self._host}/tcp/{port}"], bootstrap=self._invite.addresses
        )
        stack.push_async_callback(p2pd.close)
        identity = Identity.load(key)
        relayed = RelayedTransport(identity, p2pd, [RATE_PROTOCOL])
        direct = DirectTransport(identity, relayed, [])
        beside = int((await p2pd.addresses())[0].split("/tcp/")[1].split("/")[0]) + 1
        await direct.listen(self._host, beside if beside < 1 << 16 else 0)
        stack.push_async_callback(direct.close)
        return p2pd, direct, relayed

    async def _check_run(self, finder: Finder) -> Check:
        try:
            async with asyncio.timeout(MANIFEST_S):
                manifest = await finder.manifest()
        except ConfigError as error:
            words, _, fix = str(error).partition(": ")
            return failed("run", words, fix or "ask for a newer invite")
        except TimeoutError:
            return failed("run", "nobody of this run has told what it is", "ask for a newer invite, or try again later")
        self._known(manifest)
        return passed("run", f"{manifest.config.name}, protocol {PROTOCOL_VERSION} there and here")

    async def _connect(self, p2pd: P2pdTransport, finder: Finder) -> list[tuple[str, tuple[str, ...]]]:
        """Some members, as many as are asked, with their addresses."""
        found = {known.peer: known.addresses for known in await finder.members()}
        connected = await p2pd.connected_peers()
        # The invite's peers are there whether the run's table could be read or not.
        near = [peer for peer in dict.fromkeys((*found, *finder.invited)) if peer in connected]
        far = [peer for peer in found if peer not in connected][: ENOUGH + 2]
        dials = [asyncio.create_task(_try(p2pd.connect(peer, found[peer]))) for peer in far]
        try:
            if len(near) < ENOUGH and dials:
                await asyncio.wait(dials, timeout=DIAL_S)
        finally:
            await end_tasks(dials)
        connected = await p2pd.connected_peers()
        there = [*(peer for peer in near if peer in found), *(peer for peer in far if peer in connected), *near]
        return [(peer, found.get(peer, ())) for peer in dict.fromkeys(there)][:ENOUGH]


def own_host(host: str) -> str:
    """This machine's address on the way to an IP address, empty if there is no way. Sends nothing."""
    with suppress(OSError), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect((host, 9))
        return str(one.getsockname()[0])
    return ""


async def _try(connecting: Coroutine[None, None, None]) -> None:
    with suppress(PeerError, NetworkError):
        await connecting


async def _check_rate(p2pd: P2pdTransport, members: Sequence[tuple[str, tuple[str, ...]]]) -> Check:
    reason = "there is no member to measure with"
    with suppress(TimeoutError):
        async with asyncio.timeout(RATE_S):
            for peer, addresses in members:
                try:
                    return check_rate(await measure_rates(p2pd, peer, addresses), peer)
                except PeerError as error:
                    reason = error.reason
            return check_rate(None, "", reason)
    return check_rate(None, "", f"it took more than {RATE_S:.0f} s")


async def check_names(invite: Invite) -> Check:
    """Whether the names in an invite can be looked up."""
    names = sorted({parts[2] for address in invite.addresses if (parts := address.split("/"))[1].startswith("dns")})
    if not names:
        return passed("names", "the invite has addresses only: nothing to look up")
    lost = [name for name, found in zip(names, await asyncio.gather(*map(_is_found, names)), strict=True) if not found]
    if not lost:
        return passed("names", f"{', '.join(names)} found")
    words, fix = f"{', '.join(lost)} cannot be looked up", "check /etc/resolv.conf and the network, or the invite"
    return failed("names", words, fix) if len(lost) == len(invite.addresses) else warned("names", words, fix)


async def _is_found(name: str) -> bool:
    with suppress(OSError, TimeoutError, UnicodeError):
        async with asyncio.timeout(NAME_S):
            await asyncio.get_running_loop().getaddrinfo(name, None)
            return True
    return False


async def check_bootstrap(invite: Invite) -> Check:
    """Whether the invite's addresses answer at all."""
    endpoints = list(dict.fromkeys(found for address in invite.addresses if (found := tcp_endpoint(address))))
    answers = await asyncio.gather(*(_answers(*endpoint) for endpoint in endpoints))
    silent = [f"{host}:{port}" for (host, port), here in zip(endpoints, answers, strict=True) if not here]
    if not silent:
        return passed("bootstrap", f"all {len(endpoints)} addresses of the invite answer")
    words = (
        f"{len(endpoints) - len(silent)} of {len(endpoints)} addresses of the invite answer; not {', '.join(silent)}"
    )
    if len(silent) == len(endpoints):
        fix = "check that this machine is online and its firewall lets TCP out, or ask for a newer invite"
        return failed("bootstrap", words, fix)
    return passed("bootstrap", words)


async def _answers(host: str, port: int) -> bool:
    with suppress(OSError, TimeoutError, socket.gaierror):
        async with asyncio.timeout(DIAL_S):
            _, writer = await asyncio.open_connection(host, port)
            writer.transport.abort()
            return True
    return False
