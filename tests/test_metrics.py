"""What a peer tells Prometheus: asked over HTTP, read by its own parser, and held to the docs and the dashboard."""

import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from runtime.errors import NotNowError
from runtime.metrics import BUCKETS_S, Metrics, serve

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docker" / "grafana" / "atoll.json").read_text(encoding="utf-8"))
OWN, OTHER = "12D3KooWown", "12D3KooWother"
FIGURES = {"up": 6_000_000, "down": 0}
COMMIT: dict[str, Any] = {
    "event": "outer_step_committed",
    "time": 1.0,
    "peer": OWN,
    "outer_step": 7,
    "attempt": 0,
    "live": 3,
    "members": [OTHER, OWN],
    "weights": [600, 400],
    "losses": [2.0, 3.0],
    "figures": [None, FIGURES],
    "tokens": 9000,
    "loss": 2.4,
    "round_s": 0.3,
    "forming_s": 0.02,
    "quantisation_error": 0.009,
    "bytes_sent": 1000,
    "bytes_received": 2000,
    "state_bytes_sent": 500,
}
LOOK: dict[str, Any] = {
    "members": 3,
    "inner_steps": 25,
    "round_bytes": (1000, 2000),
    "spent_s": (8.0, 2.0),
    "watchers": 1,
}


def event(kind: str, **fields: object) -> dict[str, object]:
    return {"event": kind, "time": 1.0, "peer": OWN, **fields}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Scraped:
    """A registry behind HTTP."""

    def __init__(self, metrics: Metrics, port: int) -> None:
        self.metrics, self._url = metrics, f"http://127.0.0.1:{port}/metrics"

    def families(self) -> dict[str, Metric]:
        """By name, as Prometheus reads them."""
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}

    def values(self) -> dict[str, float]:
        """Sample name -> value, of samples without labels."""
        return {
            sample.name: sample.value
            for family in self.families().values()
            for sample in family.samples
            if not sample.labels
        }


@pytest.fixture
def scraped() -> Iterator[Scraped]:
    metrics, port = Metrics(), free_port()
    close = serve(metrics, port)
    yield Scraped(metrics, port)
    close()


def test_what_is_not_known_is_left_out_and_what_was_counted_begins_at_nought(scraped: Scraped) -> None:
    values = scraped.values()
    assert {name for name in values if not name.endswith(("_seconds_count", "_seconds_sum"))} == {
        "atoll_contributed_tokens_total",
        "atoll_strikes_total",
        "atoll_forks_total",
        "atoll_checkpoints_failed_total",
    }
    assert set(values.values()) == {0.0}


def test_an_outer_step_is_told_as_it_was_logged(scraped: Scraped) -> None:
    scraped.metrics.enter("5f0c", OWN)
    scraped.metrics.look(**LOOK)
    scraped.metrics.add(COMMIT)
    scraped.metrics.add({**COMMIT, "outer_step": 8, "tokens": 10_000, "round_s": 0.4})
    values, families = scraped.values(), scraped.families()
    assert values["atoll_outer_step"] == 8
    assert values["atoll_tokens_total"] == 10_000
    assert values["atoll_contributed_tokens_total"] == 800
    assert values["atoll_loss"] == 2.4
    assert values["atoll_participants"] == 2
    assert values["atoll_members"] == 3
    assert values["atoll_quantisation_error_ratio"] == 0.009
    assert values["atoll_round_seconds_count"] == 2
    assert values["atoll_round_seconds_sum"] == pytest.approx(0.7)
    assert (values["atoll_sent_bytes_total"], values["atoll_received_bytes_total"]) == (1000, 2000)
    assert values["atoll_state_sent_bytes_total"] == 500
    assert (values["atoll_busy_seconds_total"], values["atoll_blocked_seconds_total"]) == (8, 2)
    assert (values["atoll_inner_steps_total"], values["atoll_watchers"]) == (25, 1)
    (info,) = families["atoll_info"].samples
    assert (info.value, info.labels["run"], info.labels["peer"]) == (1, "5f0c", OWN)
    # What has not been measured yet is no rate of 0.
    assert [(one.labels, one.value) for one in families["atoll_link_bytes_per_second"].samples] == [
        ({"direction": "up"}, 6_000_000)
    ]
    buckets = [one for one in families["atoll_round_seconds"].samples if one.name.endswith("_bucket")]
    assert len(buckets) == len(BUCKETS_S) + 1
    assert {one.labels["le"]: one.value for one in buckets}["0.25"] == 0
    assert {one.labels["le"]: one.value for one in buckets}["0.5"] == 2


def test_a_step_that_this_peer_had_no_part_in_adds_nothing_of_its_own(scraped: Scraped) -> None:
    scraped.metrics.add(COMMIT)
    of_others = {"members": [OTHER], "weights": [600], "losses": [None], "figures": [None], "loss": None}
    nothing = {"round_s": None, "forming_s": None, "quantisation_error": None}
    scraped.metrics.add({**COMMIT, **of_others, **nothing, "outer_step": 8})
    values = scraped.values()
    assert values["atoll_outer_step"] == 8
    assert values["atoll_contributed_tokens_total"] == 400
    assert values["atoll_round_seconds_count"] == 1
    assert not {"atoll_loss", "atoll_quantisation_error_ratio"} & values.keys()


def test_faults_are_counted_and_no_word_of_another_peer_becomes_a_label(scraped: Scraped) -> None:
    for number in range(100):
        scraped.metrics.add(event("strike", member=OTHER, reason=f"sends {number}"))
    scraped.metrics.add(event("fork_found", member=OTHER, outer_step=3))
    scraped.metrics.add(event("checkpoint_failed", outer_step=3, reason="no room"))
    scraped.metrics.add(event("member_up", member=OTHER))
    values = scraped.values()
    assert values["atoll_strikes_total"] == 100
    assert values["atoll_forks_total"] == values["atoll_checkpoints_failed_total"] == 1
    labels = {label for family in scraped.families().values() for one in family.samples for label in one.labels}
    assert labels <= {"le", "direction", "run", "peer", "version"}


def test_joining_and_validating_are_told_and_a_loss_that_is_no_number_is_not(scraped: Scraped) -> None:
    scraped.metrics.add(event("joined", outer_step=12, lineage="00", kept=""))
    scraped.metrics.add(event("validated", outer_step=12, val_loss=1.5))
    assert scraped.values()["atoll_outer_step"] == 12
    assert scraped.values()["atoll_validation_loss"] == 1.5
    scraped.metrics.add(event("validated", outer_step=13, val_loss=None))
    assert "atoll_validation_loss" not in scraped.values()


def test_it_listens_on_this_machine_only_and_gives_the_port_back() -> None:
    port = free_port()
    close = serve(Metrics(), port)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), 5):
        pass
    close()
    serve(Metrics(), port)()


def test_a_port_that_is_taken_is_the_users_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NotNowError, match=rf"port {port} of 127\.0\.0\.1 .*choose another with --metrics-port"):
            serve(Metrics(), port)


# The docs, the dashboard and the registry.


def told() -> dict[str, str]:
    """Name -> type, of all that a registry ever tells."""
    metrics = Metrics()
    metrics.enter("run", OWN)
    metrics.look(**LOOK)
    metrics.add(COMMIT)
    metrics.add(event("validated", outer_step=7, val_loss=1.5))
    suffixes = {"counter": "_total", "info": "_info"}
    families = list(metrics.registry.collect())
    assert all(family.samples for family in families)
    # In the text format an info is a gauge that is always 1.
    return {
        family.name + suffixes.get(family.type, ""): "gauge" if family.type == "info" else family.type
        for family in families
    }


def test_the_docs_name_every_metric_with_its_type_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", DOCS, re.MULTILINE)
    assert dict(rows) == told()
    assert len(rows) == len(told())


def test_units_are_base_units_and_part_of_the_name() -> None:
    for name in told():
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|mbit|percent)\b", name)
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| ([\w ]*) \|", DOCS, re.MULTILINE)
    for name, unit in rows:
        if unit.strip() in ("seconds", "bytes", "ratio"):
            assert f"_{unit.strip()}" in name


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DASHBOARD["panels"]
    return found


def test_the_dashboard_asks_for_every_metric_and_for_no_other() -> None:
    asked = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for panel in panels()
        for target in panel["targets"]
        for name in re.findall(r"\batoll_\w+", target["expr"])
    }
    assert asked == told().keys()


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """One variable, for the data source; every panel has a place of its own, a unit and something to show."""
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    assert "id" not in DASHBOARD
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken = set[tuple[int, int]]()
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["title"]
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert all(0 <= x < 24 for x, _ in cells)
        taken |= cells


def test_a_rate_is_asked_of_counters_and_a_quantile_of_histograms_only() -> None:
    types = told()
    for panel in panels():
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            for name in re.findall(r"(?:rate|increase)\((atoll_\w+)", target["expr"]):
                assert types[name.removesuffix("_bucket")] == ("histogram" if name.endswith("_bucket") else "counter")
            counters = [name for name in re.findall(r"\batoll_\w+", target["expr"]) if types.get(name) == "counter"]
            if panel["type"] == "timeseries":
                assert all(re.search(rf"(rate|increase)\({name}\[", target["expr"]) for name in counters)
