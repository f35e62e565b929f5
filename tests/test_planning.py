"""``atoll plan``: its numbers against those of the documents, and against the formulas by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from runtime.averaging.codecs.base import encode_vector
from runtime.averaging.codecs.registry import CODECS
from runtime.cli import app
from runtime.config import AveragingSection, InnerSection, ModelSection, RunConfig
from runtime.monitor.words import size_words
from runtime.planning import FORMING_S, Plan, make_plan
from runtime.state import State
from runtime.training.checkpoint import save_checkpoint
from runtime.training.data import Corpus
from runtime.training.model import PRESETS
from runtime.training.replica import Replica

MBIT = 1e6 / 8


def planned(
    preset: str = "toy",
    n: int = 4,
    codec: str = "int8",
    step_s: float | None = None,
    ups: Sequence[float] | None = None,
    steps: int = 100,
    quorum: int = 1,
    down_mbit: float = 50,
) -> Plan:
    config = replace(
        RunConfig(),
        model=ModelSection(preset=preset),
        inner=InnerSection(steps=steps),
        averaging=AveragingSection(codec=codec, quorum=quorum),
    )
    return make_plan(config, ups or [50 * MBIT] * n, [down_mbit * MBIT] * n, step_s)


@pytest.mark.parametrize("codec", CODECS)
def test_a_payload_is_as_long_as_the_codec_makes_it(codec: str) -> None:
    n_parameters = PRESETS["toy"].n_parameters
    assert planned(codec=codec)["payload_bytes"] == len(encode_vector(CODECS[codec], torch.zeros(n_parameters)))


def test_memory_is_the_47_and_63_bytes_a_parameter_of_docs_wire() -> None:
    plan = planned("xl", n=256)
    per_parameter = plan["host_memory_bytes"] / plan["parameters"]
    assert per_parameter == pytest.approx(47, abs=0.1)
    assert per_parameter + plan["joining_memory_bytes"] / plan["parameters"] == pytest.approx(63, abs=0.1)
    parts = [figure.value for figure in plan.figures if figure.title.startswith("  ") and "joining" not in figure.key]
    assert sum(parts) == plan["host_memory_bytes"]


def test_an_exact_codec_loses_nothing_and_keeps_nothing_of_it() -> None:
    exact, lossy = planned(codec="float32"), planned(codec="int8")
    assert exact["feedback_memory_bytes"] == 0
    assert lossy["checkpoint_bytes"] - exact["checkpoint_bytes"] == 4 * lossy["parameters"]


def test_a_checkpoint_on_disk_is_no_larger_than_that_and_not_much_smaller(tmp_path: Path) -> None:
    text = torch.zeros(4096, dtype=torch.uint8)
    config = replace(RunConfig(), inner=InnerSection(steps=5, batch=1))
    replica = Replica(config, Corpus(text, text, 1), device="cpu", peer_seed=0)
    asked = iter((False, False, True))
    replica.train(lambda: next(asked))
    vectors = [replica.anchor_P, replica.momentum_P, torch.zeros_like(replica.anchor_P)]
    state = State(1, bytes(32), 1, ("a",), *vectors)
    path = save_checkpoint(tmp_path, state, replica.inner_state())
    on_disk = sum(file.stat().st_size for file in path.iterdir())
    # Beside the vectors: names, shapes, hashes and the generator's state.
    assert planned()["checkpoint_bytes"] <= on_disk <= planned()["checkpoint_bytes"] + 10_000


@pytest.mark.parametrize(("n", "passes"), [(2, 1.0), (4, 1.5), (8, 1.75)])
def test_a_round_over_equal_links_by_hand(n: int, passes: float) -> None:
    plan = planned("medium", n)
    assert plan["round_bytes"] == pytest.approx(passes * plan["payload_bytes"])
    assert plan["round_s"] == pytest.approx(passes * plan["payload_bytes"] / (50 * MBIT) + FORMING_S)


def test_the_measured_shaped_rounds_are_within_the_words_of_the_plan() -> None:
    # benchmarks/README.md: 20 M parameters, 4 peers at 50 Mbit/s 5.20 s, at 200 Mbit/s 1.37 s; 8 at 50 6.38 s.
    for n, mbit, measured_s in ((4, 50, 5.20), (4, 200, 1.37), (8, 50, 6.38)):
        plan = planned("medium", n, ups=[mbit * MBIT] * n, down_mbit=mbit)
        of_20_million_s = plan["round_s"] * 20e6 / plan["parameters"]
        assert 1.05 <= measured_s / of_20_million_s <= 1.3
    assert "1.1 to 1.3 times" in next(figure.formula for figure in plan.figures if figure.key == "round_s")


def test_bytes_against_data_parallel_are_four_times_the_inner_steps() -> None:
    # 392 times was measured at 100 inner steps: the rest is control and framing.
    assert planned(steps=100)["saving_ratio"] == pytest.approx(400, rel=0.002)


def test_utilisation_is_training_over_training_and_a_round() -> None:
    plan = planned("large", step_s=0.2)
    assert plan["train_s"] == pytest.approx(20)
    assert plan["utilisation_ratio"] == pytest.approx(20 / (20 + plan["round_s"]))
    assert plan["run_s"] == pytest.approx(20 * (20 + plan["round_s"]))


def test_the_step_that_it_asks_for_gives_what_it_promises() -> None:
    wanted = planned("large")["wanted_step_s"]
    assert planned("large", step_s=wanted)["utilisation_ratio"] == pytest.approx(0.8)
    (warning,) = planned("large", step_s=wanted / 2).warnings
    steps = int(warning.split("inner.steps = ")[1].split()[0].replace(",", ""))
    assert planned("large", step_s=wanted / 2, steps=steps)["utilisation_ratio"] == pytest.approx(0.8, abs=0.005)


def test_one_slow_link_is_told_and_holds_a_round_up_by_its_own_contribution_only() -> None:
    plan = planned("medium", ups=[50 * MBIT, 50 * MBIT, 50 * MBIT, 5 * MBIT])
    assert any("1 of 4" in warning for warning in plan.warnings)
    assert plan["round_s"] == pytest.approx(plan["payload_bytes"] / (5 * MBIT) + FORMING_S, rel=1e-6)


def test_a_quorum_that_cannot_be_is_told() -> None:
    assert "with 4 peers no outer step is ever taken" in planned(quorum=5).warnings[0]
    assert not planned(quorum=4).warnings


def test_a_peer_alone_sends_nothing() -> None:
    plan = planned(n=1, step_s=0.1)
    assert plan["round_bytes"] == 0
    assert plan["round_s"] == FORMING_S
    with pytest.raises(KeyError):
        plan["saving_ratio"]


@given(
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from([*sorted(CODECS), "auto"]),
    st.lists(st.floats(0.1 * MBIT, 1e5 * MBIT), min_size=1, max_size=9),
    st.none() | st.floats(1e-4, 3600),
)
def test_every_plan_has_finite_numbers_and_every_number_a_formula(
    preset: str, codec: str, links: list[float], step_s: float | None
) -> None:
    plan = planned(preset, len(links), codec, step_s, links)
    for figure in plan.figures:
        assert 0 <= figure.value < 1e18
        assert figure.formula
        assert size_words(figure.value)
    assert len({figure.key for figure in plan.figures}) == len(plan.figures)


def test_the_command_prints_each_figure_with_its_formula_and_json_has_the_same(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[model]\npreset = "large"\n')
    options = ["plan", str(file), "--peers", "3", "--up", "20,20,5", "--step-s", "0.5"]
    table = CliRunner().invoke(app, options)
    assert table.exit_code == 0, table.output
    done = CliRunner().invoke(app, [*options, "--json"])
    told = json.loads(done.stdout)
    assert told["figures"].keys() == told["formulas"].keys()
    assert told["figures"]["parameters"] == PRESETS["large"].n_parameters
    assert told["up_bytes_per_s"] == [2.5e6, 2.5e6, 0.625e6]
    for formula in told["formulas"].values():
        assert formula in table.stdout


def test_sizes_have_three_digits_and_a_unit() -> None:
    assert [size_words(n) for n in (0, 999, 136_448, 1_970_000, 12.3e9)] == [
        "0 B",
        "999 B",
        "136 kB",
        "1.97 MB",
        "12.3 GB",
    ]


def test_the_volunteers_guide_has_the_plans_numbers() -> None:
    page = (Path(__file__).parents[1] / "docs" / "volunteer.md").read_text("utf-8")
    keys = ("device_memory_bytes", "host_memory_bytes", "disk_bytes", "round_bytes")
    for preset in PRESETS:
        plan = planned(preset)
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{preset}` |"))
        assert row.endswith(f"| {' | '.join(size_words(plan[key]) for key in keys)} |")
