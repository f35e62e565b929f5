"""Hosts on one machine: a network namespace each, their links shaped, cut and split; loopback where that is not to be.

Host K is a namespace with the address 10.77.0.K+1 on one of two bridges: all are on the first unless the network is
split. A link of a given rate is a token bucket each way, with 10 ms of tokens and 100 ms of queue.

A host behind NAT has a router of its own, another namespace: that has the address, and passes what the host sends on as
its own (masquerading); what comes without having been asked for is dropped, silently. All such hosts are 192.168.1.2 at
home. What is sent to an address that nobody has is lost silently too, as on the internet.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Collection, Sequence
from types import TracebackType

NO_MAC = "02:00:00:00:00:01"
HOME_ADDRESS, ROUTER_ADDRESS = "192.168.1.2", "192.168.1.1"
# A way to the rest of the internet, whose end nobody has.
NOWHERE = "10.77.0.254"
# Of a home's router: everything out under its own address, nothing in that does not belong to what went out.
FIREWALL = """
table ip nat {
  chain prerouting { type nat hook prerouting priority dstnat; }
  chain postrouting { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
}
table ip filter {
  chain input { type filter hook input priority filter; iifname "eth0" ct state new drop; }
  chain forward { type filter hook forward priority filter; ct status dnat accept; iifname "eth0" ct state new drop; }
}
"""


class Hosts:
    """A context manager; on leaving, namespaces and all in them are gone. Needs root and iproute2.

    Args: rates_mbit are the links', each way, or one of every link; None leaves them unshaped. hidden are behind NAT,
    which needs nftables.
    """

    def __init__(
        self, n_hosts: int, rates_mbit: float | Sequence[float] | None = None, hidden: Collection[int] = ()
    ) -> None:
        self._n_hosts, self._hidden = n_hosts, frozenset(hidden)
        self._rates_mbit = rates_mbit if isinstance(rates_mbit, Sequence) else [rates_mbit] * n_hosts
        # Names of interfaces have at most 15 characters; two benchmarks at a time do not share them.
        self._id = f"at{os.getpid() % 100_000}"

    @staticmethod
    def available() -> bool:
        return os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("tc") is not None

    @staticmethod
    def can_hide() -> bool:
        return Hosts.available() and shutil.which("nft") is not None

    def __enter__(self) -> "Hosts":
        try:
            # In a namespace of its own: where Docker runs, its firewall looks at every bridge of the machine's.
            _ip("netns", "add", self._switch)
            for side in (0, 1):
                _ip("-n", self._switch, "link", "add", self._bridge(side), "type", "bridge")
                _ip("-n", self._switch, "link", "set", self._bridge(side), "up")
            for host in range(self._n_hosts):
                self._add(host)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for host in range(self._n_hosts):
            for namespace in (self._namespace(host), self._router(host)):
                subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self._switch], capture_output=True, check=False)

    def prefix(self, host: int) -> Sequence[str]:
        """What runs a command on the host."""
        return ("ip", "netns", "exec", self._namespace(host))

    def address(self, host: int) -> str:
        """At which the others see it."""
        return f"10.77.0.{host + 1}"

    def link(self, host: int, up: bool) -> None:
        """Pull the host's cable, at the switch: nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port(host), "up" if up else "down")

    def split(self, side: Collection[int]) -> None:
        """Let these hosts reach only each other, and the others too; an empty ``side`` heals the network."""
        for host in range(self._n_hosts):
            _ip("-n", self._switch, "link", "set", self._port(host), "master", self._bridge(int(host in side)))

    def sent_bytes(self, host: int) -> int:
        """All that the host has put on the wire."""
        return self._counted(host, "rx")

    def received_bytes(self, host: int) -> int:
        return self._counted(host, "tx")

    def _counted(self, host: int, what: str) -> int:
        # At the switch: what the host sends is received there.
        (port,) = json.loads(_run("ip", "-n", self._switch, "-s", "-j", "link", "show", "dev", self._port(host)))
        return int(port["stats64"][what]["bytes"])

    def open_port(self, host: int, port: int) -> None:
        """Have the router of a hidden host pass on what comes to this port, as people set theirs up."""
        rule = f"add rule ip nat prerouting iifname eth0 tcp dport {port} dnat to {HOME_ADDRESS}"
        _run("ip", "netns", "exec", self._router(host), "nft", rule)

    def _add(self, host: int) -> None:
        namespace, port = self._namespace(host), self._port(host)
        _ip("netns", "add", namespace)
        if host in self._hidden:
            namespace = self._add_router(host)
        _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", self._switch, "link", "set", port, "master", self._bridge(0), "up")
        _ip("-n", namespace, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", namespace, "link", "set", device, "up")
        if self._hidden:
            _ip("-n", namespace, "neigh", "add", NOWHERE, "lladdr", NO_MAC, "dev", "eth0", "nud", "permanent")
            _ip("-n", namespace, "route", "add", "default", "via", NOWHERE)
        if (rate := self._rates_mbit[host]) is not None:
            bucket = max(16_000, int(rate * 1e6 / 8 / 100))
            shape = ["root", "tbf", "rate", f"{rate}mbit", "burst", str(bucket), "latency", "100ms"]
            _run("tc", "-n", self._switch, "qdisc", "replace", "dev", port, *shape)
            _run("tc", "-n", namespace, "qdisc", "replace", "dev", "eth0", *shape)

    def _add_router(self, host: int) -> str:
        """Between a host and the rest; the router's namespace, which has the host's link and address from now on."""
        home, router = self._namespace(host), self._router(host)
        _ip("netns", "add", router)
        _ip("link", "add", "lan0", "netns", router, "type", "veth", "peer", "name", "eth0", "netns", home)
        for namespace, device, address in ((home, "eth0", HOME_ADDRESS), (router, "lan0", ROUTER_ADDRESS)):
            _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", device)
            _ip("-n", namespace, "link", "set", device, "up")
        _ip("-n", home, "link", "set", "lo", "up")
        _ip("-n", home, "route", "add", "default", "via", ROUTER_ADDRESS)
        _run("ip", "netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        _run("ip", "netns", "exec", router, "nft", FIREWALL)
        return router

    def _namespace(self, host: int) -> str:
        return f"{self._id}n{host}"

    def _router(self, host: int) -> str:
        return f"{self._id}r{host}"

    @property
    def _switch(self) -> str:
        return f"{self._id}s"

    def _port(self, host: int) -> str:
        return f"{self._id}p{host}"

    def _bridge(self, side: int) -> str:
        return f"{self._id}b{side}"


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
