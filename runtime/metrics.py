"""What Prometheus may ask a peer: its own figures, from its events and from a look at it once a second.

docs/metrics.md explains each. What is not known, such as the loss before the first outer step, is left out.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.errors import NotNowError
from runtime.log import Event
from runtime.version import version

HOST = "127.0.0.1"
# From a round on loopback to one over a slow link.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
LINK = "atoll_link_bytes_per_second"
GAUGES = {
    "atoll_outer_step": "Outer steps that this peer's state has behind it.",
    "atoll_loss": "Mean training loss of the last outer step's members, nats a byte.",
    "atoll_validation_loss": "Last validation loss of the run's parameters, nats a byte.",
    "atoll_members": "Members that are here and train, this peer included.",
    "atoll_participants": "Members whose contributions are in the last outer step.",
    "atoll_quantisation_error_ratio": "Relative L2 error of this peer's last contribution as it was sent.",
    "atoll_watchers": "Who watches the run from here.",
}
COUNTERS = {
    "atoll_tokens_total": "Tokens that the run's history has committed.",
    "atoll_contributed_tokens_total": "Tokens of this peer's committed contributions.",
    "atoll_inner_steps_total": "Inner steps that this peer has taken.",
    "atoll_sent_bytes_total": "Bytes of rounds that this peer has sent.",
    "atoll_received_bytes_total": "Bytes of rounds that this peer has received.",
    "atoll_state_sent_bytes_total": "Bytes of the run's state that others have fetched from this peer.",
    "atoll_busy_seconds_total": "Time in inner steps.",
    "atoll_blocked_seconds_total": "Time between inner phases: rounds, and waiting for others.",
    "atoll_strikes_total": "Offences of other peers that this one has recorded.",
    "atoll_forks_total": "Times that a member was found on another history of the run.",
    "atoll_checkpoints_failed_total": "Checkpoints that could not be written.",
}
# Kinds of events -> the counter of them.
COUNTED = {
    "strike": "atoll_strikes_total",
    "fork_found": "atoll_forks_total",
    "checkpoint_failed": "atoll_checkpoints_failed_total",
}


class Metrics(Collector):
    """Written by the event loop, read by the thread that answers: single numbers, each whole at any moment."""

    def __init__(self) -> None:
        self._info: dict[str, str] = {}
        zeros = (*COUNTED.values(), "atoll_contributed_tokens_total")
        self._values: dict[str, float] = dict.fromkeys(zeros, 0.0)
        self._link: dict[str, float] = {}
        # Not how long ago each counter was made as well: that would double them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._round_s, self._forming_s = (
            Histogram(name, help_text, buckets=BUCKETS_S, registry=self.registry)
            for name, help_text in (
                ("atoll_round_seconds", "From a round's descriptor to the applied outer step."),
                ("atoll_forming_seconds", "From this peer's being ready to the round's descriptor."),
            )
        )
        self.registry.register(self)

    def enter(self, run_id: str, peer: str) -> None:
        """The peer is one of the run's from now on."""
        self._info = {"run": run_id, "peer": peer, "version": version() or "unknown"}

    def add(self, event: Event) -> None:
        """Take in an event of this peer's own log."""
        match event["event"]:
            case "outer_step_committed":
                self._add_commit(event)
            case "joined":
                self._set("atoll_outer_step", event["outer_step"])
            case "validated":
                self._set("atoll_validation_loss", event["val_loss"])
            case kind if kind in COUNTED:
                self._values[COUNTED[kind]] += 1

    def look(
        self,
        *,
        members: int,
        inner_steps: int,
        round_bytes: tuple[int, int],
        spent_s: tuple[float, float],
        watchers: int,
    ) -> None:
        """Take in how the peer stands.

        Args:
            round_bytes: sent and received so far.
            spent_s: seconds in inner phases and between them so far.
        """
        self._set("atoll_members", members)
        self._set("atoll_inner_steps_total", inner_steps)
        self._set("atoll_sent_bytes_total", round_bytes[0])
        self._set("atoll_received_bytes_total", round_bytes[1])
        self._set("atoll_busy_seconds_total", spent_s[0])
        self._set("atoll_blocked_seconds_total", spent_s[1])
        self._set("atoll_watchers", watchers)

    def _add_commit(self, event: Event) -> None:
        self._set("atoll_outer_step", event["outer_step"])
        self._set("atoll_loss", event["loss"])
        self._set("atoll_tokens_total", event["tokens"])
        self._set("atoll_participants", len(event["members"]))
        self._set("atoll_quantisation_error_ratio", event["quantisation_error"])
        self._set("atoll_state_sent_bytes_total", event["state_bytes_sent"])
        if event["round_s"] is not None:
            self._round_s.observe(event["round_s"])
            self._forming_s.observe(event["forming_s"])
        if event["peer"] in event["members"]:
            mine = event["members"].index(event["peer"])
            self._values["atoll_contributed_tokens_total"] += event["weights"][mine]
            if (figures := event["figures"][mine]) is not None:
                # A rate of 0 is one that is not known yet.
                self._link = {way: figures[way] for way in ("up", "down") if figures[way]}

    def _set(self, name: str, value: float | None) -> None:
        if value is None:
            self._values.pop(name, None)
        else:
            self._values[name] = value

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client.registry.Collector``; called in another thread."""
        info = InfoMetricFamily("atoll", "Which run and peer this is, and its version of Atoll.")
        if self._info:
            info.add_metric((), self._info)
        yield info
        for name, help_text in GAUGES.items():
            gauge = GaugeMetricFamily(name, help_text)
            if (value := self._values.get(name)) is not None:
                gauge.add_metric((), value)
            yield gauge
        for name, help_text in COUNTERS.items():
            counter = CounterMetricFamily(name, help_text)
            if (value := self._values.get(name)) is not None:
                counter.add_metric((), value)
            yield counter
        link = GaugeMetricFamily(LINK, "Of this peer's link, as measured and within its limits.", labels=["direction"])
        for direction, bytes_per_s in self._link.items():
            link.add_metric((direction,), bytes_per_s)
        yield link


def serve(metrics: Metrics, port: int) -> Callable[[], None]:
    """Answer at http://127.0.0.1:port/metrics, in a thread, until the function that is returned is called.

    Raises: NotNowError if the port cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, HOST, metrics.registry)
    except OSError as error:
        raise NotNowError(
            f"port {port} of {HOST} cannot serve metrics ({error.strerror}): choose another with --metrics-port"
        ) from None

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
