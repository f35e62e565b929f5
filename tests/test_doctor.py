"""``atoll doctor``'s checks, each on its own, and what comes of them."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from test_cli import INVITE, atoll
from virtual_clock import run_virtual

from peers.dialback import Reach, Seen, reach_of
from peers.errors import Unreachable
from peers.identity import Identity
from peers.memory import MemoryNetwork, MemoryTransport
from runtime.commands.doctor import _machine
from runtime.config import DataSection, ModelSection, PeerConfig, RunConfig
from runtime.doctor.check import Check, Verdict, failed, passed, warned
from runtime.doctor.fitness import checks_before_joining, checks_for_run, needs_of, warnings_of
from runtime.doctor.online import Visit
from runtime.doctor.outside import check_clock, check_nat, check_rate, check_reach
from runtime.doctor.packages import check_daemon, check_packages, check_python, check_torch
from runtime.doctor.resources import (
    Device,
    Memory,
    Needs,
    check_calendar,
    check_device,
    check_disk,
    check_folder,
    check_key,
    check_memory,
    disk_now,
    memory_now,
)
from runtime.errors import ConfigError, NotNowError
from runtime.finding import Finder
from runtime.folder import lock
from runtime.invite import Invite
from runtime.manifest import sign_manifest
from runtime.planning import check_fits

GB = 10**9
NEEDS = Needs(host=4 * GB, device=8 * GB, checkpoint=3 * GB)
OWN, HOME, OUTSIDE, PUBLIC = "10.0.0.5", "192.168.1.2", "203.0.113.7", "1.1.1.1"


def verdict(check: Check | None) -> str:
    assert check is not None
    # Whoever is told of trouble is told what to do.
    assert bool(check.fix) == (check.verdict is not Verdict.PASS), check
    return str(check.verdict)


def seen(host: str = OUTSIDE, port: int = 4001, direct: bool = True, ports: tuple[int, ...] = (4001,)) -> Seen:
    return Seen(host, port, direct, ports, 0.0)


@pytest.mark.parametrize(
    ("version", "system", "expected"),
    [((3, 11), "linux", "pass"), ((3, 10), "linux", "fail"), ((3, 20), "darwin", "warn"), ((3, 12), "win32", "fail")],
)
def test_python(version: tuple[int, int], system: str, expected: str) -> None:
    assert verdict(check_python(version, system)) == expected


@pytest.mark.parametrize(
    ("version", "expected"), [("2.13.0+cpu", "pass"), ("2.2", "pass"), ("2.1.9", "fail"), (None, "fail")]
)
def test_torch(version: str | None, expected: str) -> None:
    assert verdict(check_torch(version)) == expected


def test_the_daemon_has_to_be_there_and_to_be_executable(tmp_path: Path) -> None:
    daemon = tmp_path / "p2pd"
    assert verdict(check_daemon(None)) == "fail"
    assert verdict(check_daemon(daemon)) == "fail"
    daemon.touch()
    daemon.chmod(0o755)
    assert verdict(check_daemon(daemon)) == "pass"


def installed(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    return folder


def test_packages_of_the_same_names_are_found(tmp_path: Path) -> None:
    ours = installed(tmp_path / "ours", "runtime", "peers")
    other = installed(tmp_path / "other", "runtime")
    folders = {name: ours / name for name in ("runtime", "peers")}
    assert verdict(check_packages(folders, [str(ours), str(tmp_path)], {"runtime": ["atoll"]})) == "pass"
    mixed = check_packages({**folders, "runtime": other / "runtime"}, [str(ours)], {})
    assert (verdict(mixed), "two installations" in mixed.words) == ("fail", True)
    overwritten = check_packages(folders, [str(ours)], {"runtime": ["atoll", "cloud-runtime"]})
    assert (verdict(overwritten), "pip uninstall cloud-runtime" in overwritten.fix) == ("fail", True)
    shadowing = check_packages(folders, [str(other), str(ours)], {})
    assert (verdict(shadowing), str(other) in shadowing.words) == ("warn", True)


def test_this_installation_is_whole_and_the_short_form_takes_no_time() -> None:
    checks_before_joining()
    began = time.perf_counter()
    assert [check for check in checks_before_joining() if check.verdict is Verdict.FAIL] == []
    assert time.perf_counter() - began < 0.05


@pytest.mark.parametrize(
    ("total", "free", "device", "expected"),
    [
        (16, 14, "cpu", "pass"),
        (16, 9, "cpu", "warn"),
        (9, 9, "cpu", "fail"),
        (9, 9, "cuda", "pass"),
    ],
)
def test_memory_is_measured_against_the_model(total: int, free: int, device: str, expected: str) -> None:
    assert verdict(check_memory(Memory(total * GB, free * GB), NEEDS, device)) == expected


def test_memory_and_disk_without_a_model() -> None:
    assert verdict(check_memory(Memory(GB, GB), None, "cpu")) == "warn"
    assert verdict(check_memory(Memory(8 * GB, 8 * GB), None, "cpu")) == "pass"
    assert verdict(check_disk(Path("/x"), GB // 2, 0, None, 2)) == "warn"
    assert verdict(check_disk(Path("/x"), 2 * GB, 0, None, 2)) == "pass"


@pytest.mark.parametrize(
    ("free", "held", "keep", "expected"),
    [(9, 0, 2, "pass"), (8, 0, 2, "warn"), (6, 3, 2, "pass"), (2, 0, 2, "fail"), (6, 0, 1, "pass")],
)
def test_disk_is_measured_against_the_checkpoints(free: int, held: int, keep: int, expected: str) -> None:
    assert verdict(check_disk(Path("/x"), free * GB, held * GB, NEEDS, keep)) == expected


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "new" / "peer") is None
    (tmp_path / "file").touch()
    assert verdict(check_folder(tmp_path / "file" / "peer")) == "fail"


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (Device("cpu"), "pass"),
        (Device("cpu", problem="there is a GPU"), "warn"),
        (Device("cuda", "H100", 80 * GB, 80 * GB), "pass"),
        (Device("cuda", "GT", 4 * GB, 4 * GB), "fail"),
        (Device("cuda", "GT", 10 * GB, 2 * GB), "warn"),
    ],
)
def test_the_device_is_measured_against_the_model(device: Device, expected: str) -> None:
    assert verdict(check_device(device, NEEDS)) == expected
    if device.kind == "cuda":
        assert verdict(check_device(device, Needs(1, 100 * GB, 1, trains=False))) == "pass"


def test_what_is_measured_is_there(tmp_path: Path) -> None:
    memory = memory_now()
    assert 0 < memory.free <= memory.total
    (tmp_path / "state").write_bytes(bytes(1000))
    free, held = disk_now(tmp_path)
    assert free > 0
    assert held >= 1000
    assert disk_now(tmp_path / "not" / "there")[1] == 0


def test_a_run_needs_what_the_plan_says() -> None:
    toy, xl = needs_of(RunConfig()), needs_of(RunConfig(model=ModelSection(preset="xl")))
    assert toy.device == 16 * 136_448
    assert xl.host > 50 * GB
    assert not needs_of(RunConfig(), auxiliary=True).trains


def test_the_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    assert verdict(check_key(key, named=False)) == "pass"
    assert verdict(check_key(key, named=True)) == "fail"
    Identity.generate().save(key)
    assert verdict(check_key(key, named=True)) == "pass"
    give_back = lock(key)
    used = check_key(key, named=True)
    assert (verdict(used), "name another --key" in used.fix) == ("warn", True)
    give_back()
    key.chmod(0o644)
    opened = check_key(key, named=True)
    assert (verdict(opened), "chmod 600" in opened.fix) == ("fail", True)


def test_the_calendar() -> None:
    assert check_calendar(time.time()) is None
    assert verdict(check_calendar(0.0)) == "fail"


@pytest.mark.parametrize(
    ("skew_s", "expected"),
    [(0.4, "pass"), (-299, "pass"), (301, "warn"), (-3000, "warn"), (3601, "fail"), (-9e9, "fail")],
)
def test_the_clock_is_that_of_most_members(skew_s: float, expected: str) -> None:
    assert verdict(check_clock([skew_s, skew_s, 1e9])) == expected
    assert verdict(check_clock([])) == "warn"


HIDDEN = seen(direct=False, ports=())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], None),
        ([seen(), seen()], Reach(True, 4001, (OUTSIDE,))),
        ([seen(), HIDDEN], Reach(False, 0, (OUTSIDE,))),
        # One has a firewall of its own, or lies.
        ([seen(), HIDDEN, seen()], Reach(True, 4001, (OUTSIDE,))),
        ([HIDDEN, seen(), HIDDEN], Reach(False, 0, (OUTSIDE,))),
        ([seen(), seen("192.0.2.1"), seen()], Reach(True, 4001, (OUTSIDE,))),
        ([seen(), seen("192.0.2.1")], Reach(True, 4001, ("192.0.2.1", OUTSIDE))),
        # Neighbours behind the same router, even two of three.
        ([seen(HOME), seen(HOME), seen(PUBLIC, direct=False, ports=())], Reach(False, 0, (PUBLIC,))),
        ([seen(HOME), seen(PUBLIC), seen(PUBLIC)], Reach(True, 4001, (PUBLIC,))),
        ([seen(direct=False)], Reach(False, 4001, (OUTSIDE,))),
    ],
)
def test_what_most_of_those_outside_can_dial_is_reached(answers: list[Seen], expected: Reach | None) -> None:
    assert reach_of(answers) == expected


def test_one_port_is_enough_and_two_addresses_are_no_agreement() -> None:
    assert Reach(True, 0).dialable
    assert Reach(False, 4001).dialable
    assert not Reach(False, 0).dialable
    assert Reach(True, 4001, (OUTSIDE,)).host == OUTSIDE
    assert Reach(True, 4001, (OWN, OUTSIDE)).host == ""


@pytest.mark.parametrize(
    ("reach", "expected", "word"),
    [
        (None, "warn", "could be asked"),
        (Reach(True, 4001, (OUTSIDE,)), "pass", "ports 4001 and 4002"),
        (Reach(False, 4001, (OUTSIDE,)), "warn", "but not 4002"),
        (Reach(True, 0, (OUTSIDE,)), "warn", "but not 4001"),
        (Reach(False, 0, (OUTSIDE,)), "warn", "nobody can dial"),
    ],
)
def test_reach_in_words(reach: Reach | None, expected: str, word: str) -> None:
    check = check_reach(reach, 4001, 4002)
    assert verdict(check) == expected
    assert word in check.words


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([seen(OWN), seen(OWN)], "none: members see this machine at its own address"),
        ([seen()], "one member alone cannot tell"),
        ([seen(), seen(OWN)], "one member alone cannot tell"),
        ([seen(), seen()], "one port for all"),
        ([seen(), seen(port=4002)], "symmetric"),
        ([seen(), seen("198.51.100.2")], "as it has several"),
    ],
)
def test_nat_as_far_as_it_can_be_told(answers: list[Seen], words: str) -> None:
    check = check_nat(answers, {OWN, HOME})
    assert verdict(check) == "pass"
    assert words in check.words


def test_nat_of_whom_nobody_has_seen() -> None:
    assert verdict(check_nat([], {OWN})) == "warn"


@pytest.mark.parametrize(
    ("rates", "expected"), [((10**7, 10**8), "pass"), ((0, 0), "pass"), ((10**4, 10**7), "warn"), (None, "warn")]
)
def test_rates_in_words(rates: tuple[int, int] | None, expected: str) -> None:
    assert verdict(check_rate(rates, Identity.generate().peer, "busy")) == expected


def test_what_fails_stops_a_join_and_what_warns_is_said() -> None:
    fine, doubtful, broken = passed("a", "fine"), warned("b", "low", "mend it"), failed("c", "gone", "take another")
    assert warnings_of([fine, doubtful]) == ["note: b: low; mend it"]
    with pytest.raises(ConfigError, match="not fit for it: c: gone; take another") as refused:
        warnings_of([doubtful, broken])
    assert not isinstance(refused.value, NotNowError)
    with pytest.raises(NotNowError, match="not fit for it: clock: "):
        warnings_of([failed("clock", "this machine thinks it is 1970", "set the clock")])


def test_what_others_say_moves_no_cursor_and_makes_no_line() -> None:
    check = warned("rate", "not measured: busy\npass  \x1b[32mrate", "wait\r")
    assert str(check).splitlines()[0] == "warn  rate        not measured: busy?pass  ?[32mrate"
    assert len(str(check).splitlines()) == 2
    assert check.sentence() == "rate: not measured: busy?pass  ?[32mrate; wait?"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, None),
        ({"memory": "100MB"}, "fail"),
        ({"disk": "10MB"}, "fail"),
        ({"memory": "4GB", "disk": "1GB"}, "pass"),
    ],
)
def test_what_join_would_refuse_for_the_limits_of_its_user_fails(
    tmp_path: Path, flags: dict[str, Any], expected: str | None
) -> None:
    config = PeerConfig(tmp_path / "none yet", tmp_path / "key", device="cpu", **flags)
    manifest = sign_manifest(Identity.generate(), RunConfig(), bytes(32), "nonce")
    looking = Future[Device | Check]()
    looking.set_result(Device("cpu"))
    verdicts = {check.name: str(check.verdict) for check in _machine(config, looking, manifest)}
    assert verdicts.get("limits") == expected
    if expected == "fail":
        with pytest.raises(ConfigError, match="this run needs"):
            check_fits(RunConfig(), config.limits, "cpu", config.folder)


@pytest.mark.parametrize(("source", "expected"), [("stdlib", "warn"), ("files", None)])
def test_text_that_a_run_does_not_train_on_is_told(tmp_path: Path, source: str, expected: str | None) -> None:
    config = PeerConfig(tmp_path / "none yet", tmp_path / "key", device="cpu", data="texts/")
    run = RunConfig(data=DataSection(source=source))
    looking = Future[Device | Check]()
    looking.set_result(Device("cpu"))
    manifest = sign_manifest(Identity.generate(), run, bytes(32), "nonce")
    for checks in (_machine(config, looking, manifest), checks_for_run(run, config)):
        verdicts = {check.name: str(check.verdict) for check in checks}
        assert verdicts.get("data") == expected


@pytest.mark.parametrize("flags", [("--folder", "peer"), ("--config", "peer/peer.toml")])
def test_the_peer_file_counts_as_it_does_for_join(tmp_path: Path, flags: tuple[str, str]) -> None:
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "peer.toml").write_text('device = "tpu"\n')
    done = atoll("doctor", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert "peer.toml: device is 'tpu', but must be auto, cpu" in done.stderr


def test_a_machine_is_looked_at_without_any_run(tmp_path: Path) -> None:
    done = atoll("doctor", "--json", cwd=tmp_path)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert (done.returncode, told["fit"]) == (0, True), told
    names = [check["name"] for check in told["checks"]]
    assert names == ["python", "packages", "torch", "p2pd", "key", "memory", "disk", "device"]
    # It has looked only.
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_told_with_its_fix_and_in_the_exit_code(tmp_path: Path) -> None:
    Identity.generate().save(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    began = time.monotonic()
    done = atoll("doctor", INVITE, "--key", "key", cwd=tmp_path)
    assert time.monotonic() - began < 20
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("fail  key") and "may open" in line for line in lines)
    assert any(line.startswith("fail  bootstrap") and "127.0.0.1:1" in line for line in lines)
    assert sum(line.strip().startswith("fix: ") for line in lines) >= 2
    assert lines[-1].endswith("checks failed: see the fixes.")


@pytest.mark.parametrize("arguments", [["atoll:nonsense"], ["--device", "tpu"], ["--port", "70000"]])
def test_bad_usage_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    done = atoll("doctor", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("atoll: ")
    assert done.stdout == ""


def test_a_package_of_another_in_the_way_is_told_on_joining(tmp_path: Path) -> None:
    """``python -m`` puts the folder that one is in before all others."""
    installed(tmp_path / "elsewhere", "peers")
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{tmp_path / 'elsewhere'}"}
    program = "from runtime.doctor import fitness; print(fitness.warnings_of(fitness.checks_before_joining()))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "has a package named runtime or peers too" in done.stdout


def test_the_peers_of_an_invite_are_asked_when_the_runs_table_says_nothing_in_time() -> None:
    class Connected(MemoryTransport):
        async def connected_peers(self) -> tuple[str, ...]:
            return (friend,)

        async def connect(self, peer: str, addresses: Sequence[str]) -> None:
            raise Unreachable(peer, "no answer in 4 s")

    class Slow:
        async def store(self, key: str, subkey: str, value: bytes, expires_at: float) -> bool:
            return False

        async def get(self, key: str) -> dict[str, bytes]:
            await asyncio.sleep(3.0)
            return {}

    friend = Identity.generate().peer
    invite = Invite("5" * 40, (f"/ip4/127.0.0.1/tcp/1/p2p/{friend}",))

    async def main() -> list[tuple[str, tuple[str, ...]]]:
        transport = Connected(MemoryNetwork(random.Random(0)), Identity.generate().peer)
        finder = Finder(transport, Slow(), invite.run_id, invite.addresses)
        return await Visit(invite, "127.0.0.1", 0)._connect(transport, finder)  # type: ignore[arg-type]

    assert run_virtual(main()) == [(friend, ())]
