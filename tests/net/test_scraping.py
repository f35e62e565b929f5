"""A real peer that Prometheus asks while it trains."""

import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from swarm import DEADLINE_S, POLL_S, Peer, swarm


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    """Sample name -> value; of those with labels the last one."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {one.name: one.value for family in text_string_to_metric_families(text) for one in family.samples}


def scrape_until(port: int, name: str, least: float, peer: Peer) -> dict[str, float]:
    deadline = time.monotonic() + DEADLINE_S
    while (told := scrape(port)).get(name, -1) < least:
        assert time.monotonic() < deadline, f"{told}\n{peer.story()}"
        time.sleep(POLL_S)
    return told


def test_a_peer_tells_prometheus_what_its_own_log_says_while_it_trains(tmp_path: Path) -> None:
    port = free_port()
    with swarm(tmp_path) as made:
        first, invite = made.start(outer_steps=2000, quorum=2, options=("--metrics-port", str(port)))
        waiting = scrape_until(port, "atoll_inner_steps_total", 4, first)
        assert waiting["atoll_members"] == 1
        assert "atoll_loss" not in waiting
        second = made.join("second", invite)
        began = scrape_until(port, "atoll_outer_step", 3, first)
        later = scrape_until(port, "atoll_outer_step", began["atoll_outer_step"] + 3, first)
        assert later["atoll_participants"] == 2
        assert later["atoll_tokens_total"] > began["atoll_tokens_total"]
        # A look a second: what it tells may be one behind what the events have told.
        assert scrape_until(port, "atoll_members", 2, first)["atoll_members"] == 2
        counted = scrape_until(port, "atoll_inner_steps_total", began["atoll_inner_steps_total"] + 8, first)
        assert counted["atoll_sent_bytes_total"] > 0
        assert counted["atoll_busy_seconds_total"] > 0
        assert counted["atoll_blocked_seconds_total"] > 0
        second.process.terminate()
        assert second.wait_for_exit() == 0
        # What comes after a goodbye is one step at most; then both have said the same for good.
        first.wait_for("member_down")
        told = scrape(port)
        commits = first.all("outer_step_committed")
        assert told["atoll_outer_step"] == commits[-1]["outer_step"]
        assert told["atoll_tokens_total"] == commits[-1]["tokens"]
        assert told["atoll_round_seconds_count"] == sum(one["round_s"] is not None for one in commits)
        own = sum(one["weights"][one["members"].index(first.id)] for one in commits if first.id in one["members"])
        assert told["atoll_contributed_tokens_total"] == own
        assert told["atoll_info"] == 1
        first.process.terminate()
        assert first.wait_for_exit() == 0
        # It is gone with its peer.
        try:
            scrape(port)
        except urllib.error.URLError as error:
            assert isinstance(error.reason, ConnectionRefusedError)
        else:
            raise AssertionError("somebody still answers")
