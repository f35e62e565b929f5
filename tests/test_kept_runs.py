"""Using what a run has on this disk: found by name, measured, made to speak, written for others."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner, Result

from peers.identity import Identity
from runtime.cli import app
from runtime.config import RunConfig
from runtime.errors import ConfigError
from runtime.log import EventLog
from runtime.manifest import sign_manifest
from runtime.shelf import find_run
from runtime.state import State
from runtime.training.checkpoint import save_checkpoint
from runtime.training.inference import continuation, loss_on
from runtime.training.model import GPT, PRESETS, build_model, flatten

BOB, CAT = Identity.generate().peer, Identity.generate().peer


def make_run(folder: Path, name: str = "tides", outer_step: int = 7) -> str:
    """A peer's folder as one leaves it; the run id."""
    config = replace(RunConfig(), name=name)
    manifest = sign_manifest(Identity.generate(), config, bytes(32), "nonce")
    folder.mkdir(parents=True)
    (folder / "manifest").write_bytes(manifest.sealed)
    if outer_step:
        anchor_P = flatten(build_model("toy", 0).parameters())
        state = State(outer_step, bytes(32), 12_345, (BOB,), anchor_P, torch.zeros_like(anchor_P))
        save_checkpoint(folder, state)
    log = EventLog(folder / "events.jsonl", BOB)
    # Step 1 was taken twice, the second time on the history that stood; step 99 is after the checkpoint.
    for step, members, weights in ((1, [CAT], [5]), (1, [BOB, CAT], [10, 30]), (2, [BOB], [7]), (99, [CAT], [1000])):
        log.report("outer_step_committed", outer_step=step, members=members, weights=weights)
    log.close()
    return manifest.run_id


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def atoll(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_runs_lists_those_that_were_joined_and_those_that_were_opened_here(home: Path) -> None:
    assert "There is no run in" in atoll("runs").output
    joined = make_run(home / "data" / "atoll" / "abc", "tides")
    make_run(home / "here" / "mine.peer", "waves", outer_step=0)
    listed = atoll("runs").output
    assert "tides" in listed
    assert joined[:12] in listed
    assert "7 of 20" in listed
    assert "12,345" in listed
    assert "waves" in listed
    assert "mine.peer" in listed


def test_a_run_is_meant_by_its_name_its_id_or_a_folder(home: Path) -> None:
    run_id = make_run(home / "data" / "atoll" / "abc", "tides")
    make_run(home / "here" / "mine.peer", "waves")
    for name in ("tides", run_id, run_id[:6], str(home / "data" / "atoll" / "abc")):
        assert find_run(name).manifest.run_id == run_id
    assert find_run("mine.peer").manifest.config.name == "waves"
    for wrong in ("", "tide", run_id[:3], str(home)):
        with pytest.raises(ConfigError, match=r"is not the folder of a peer|There is no run"):
            find_run(wrong)
    make_run(home / "here" / "other.peer", "waves")
    with pytest.raises(ConfigError, match="say which folder"):
        find_run("waves")


def test_export_writes_what_other_libraries_load_and_who_made_it(home: Path) -> None:
    run_id = make_run(home / "data" / "atoll" / "abc")
    result = atoll("export", "tides", "--format", "safetensors")
    assert result.exit_code == 0, result.output
    out = home / "here" / "tides-7"
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((out / "config.json").read_text())
    model = GPT(PRESETS[config["preset"]])
    with safe_open(out / "model.safetensors", framework="pt") as stored:
        model.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
    assert torch.equal(flatten(model.parameters()), flatten(build_model("toy", 0).parameters()))
    card = (out / "README.md").read_text()
    assert run_id in card
    assert "12,345" in card
    assert f"| `{CAT}` | 1 | 30 |\n| `{BOB}` | 2 | 17 |" in card


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "tides", "--output", "there"), "exists already and is never overwritten"),
        (("export", "tides", "--output", "file/x"), "cannot be written"),
        (("export", "tides", "--format", "gguf"), "must be safetensors"),
        (("export", "nobody"), "There is no run 'nobody'"),
        (("generate", "tides", "--bytes", "0"), "--bytes is 0"),
        (("generate", "tides", "--temperature", "nan"), "--temperature is nan"),
        (("eval", "tides", "--data", "nowhere"), "There is no file or folder nowhere"),
        (("eval", "tides", "--data", "short.txt"), "too few for a context of 64"),
        (("eval", "waves"), "has no checkpoint yet"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(
    home: Path, arguments: tuple[str, ...], said: str
) -> None:
    make_run(home / "data" / "atoll" / "abc")
    make_run(home / "here" / "waves.peer", "waves", outer_step=0)
    (home / "here" / "there").mkdir()
    (home / "here" / "file").write_text("a file")
    (home / "here" / "short.txt").write_text("too short")
    before = sorted(home.rglob("*"))
    with pytest.raises(ConfigError, match=said):
        raise atoll(*arguments).exception or AssertionError("it went well")
    assert sorted(home.rglob("*")) == before


def test_eval_measures_the_text_it_is_given(home: Path) -> None:
    make_run(home / "data" / "atoll" / "abc")
    (home / "here" / "text.txt").write_text("all the same\n" * 100)
    said = atoll("eval", "tides", "--data", "text.txt").output
    # Fresh weights give each of the 256 bytes about the same chance.
    assert float(said.split(": ")[1].split()[0]) == pytest.approx(math.log(256), abs=0.1)
    assert "on 1,300 bytes" in said


def test_generate_goes_on_from_the_prompt_and_draws_alike_from_one_seed(home: Path) -> None:
    make_run(home / "data" / "atoll" / "abc")
    made = [atoll("generate", "tides", "--prompt", "def f", "--bytes", "50", "--seed", "3").output for _ in range(2)]
    assert made[0] == made[1]
    assert made[0].startswith("def f")
    assert all(sign.isprintable() or sign in "\n\t" for sign in made[0])


def test_the_likeliest_byte_is_the_one_that_the_model_has_learnt() -> None:
    model = build_model("toy", 0)
    text = torch.tensor(list(b"abc" * 400), dtype=torch.uint8)
    assert loss_on(model, text) == pytest.approx(math.log(256), abs=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for start in range(60):
        window = text[start : start + 65].long()[None]
        optimizer.zero_grad()
        model(window[:, :-1], window[:, 1:]).backward()
        optimizer.step()
    assert loss_on(model, text) < 0.1
    said = b"".join(continuation(model, b"abcab", 70, 0.0, torch.Generator()))
    assert said == (b"cab" * 24)[:70]


def test_no_byte_of_a_text_is_left_out_of_its_loss() -> None:
    model = build_model("toy", 0)
    text = torch.randint(0, 256, (64 * 5 + 20,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    other = text.clone()
    other[-1] ^= 1
    assert loss_on(model, text) != loss_on(model, other)
    with pytest.raises(ValueError, match="too few"):
        loss_on(model, text[:64])


def test_a_damaged_folder_hides_no_other_run_and_a_folder_no_run_of_its_name(home: Path) -> None:
    make_run(home / "data" / "atoll" / "abc", "tides")
    (home / "data" / "atoll" / "bad").mkdir()
    (home / "data" / "atoll" / "bad" / "manifest").write_bytes(b"damaged")
    (home / "here" / "tides").mkdir()
    assert "tides" in atoll("runs").output
    assert find_run("tides").folder.name == "abc"
    assert atoll("export", "tides", "--output", "out/").exit_code == 0


def test_a_torn_checkpoint_is_told_and_what_is_written_is_called_after_the_one_that_was_used(home: Path) -> None:
    folder = home / "here" / "mine.peer"
    make_run(folder, "tides", outer_step=7)
    anchor_P = flatten(build_model("toy", 1).parameters())
    save_checkpoint(folder, State(9, bytes(32), 20_000, (BOB,), anchor_P, torch.zeros_like(anchor_P)))
    torn = next((folder / "checkpoints").glob("*9.*"))
    weights = torn / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8 * [1]))
    done = atoll("export", "tides")
    assert done.exit_code == 0
    assert f"{torn.name} cannot be used" in done.output
    assert "Wrote tides-7: " in done.output
    assert (home / "here" / "tides-7" / "model.safetensors").exists()
    assert "cannot be used" in atoll("eval", "tides").output


def test_a_folder_without_its_manifest_is_told_apart_from_no_folder(home: Path) -> None:
    make_run(home / "here" / "mine.peer")
    (home / "here" / "mine.peer" / "manifest").unlink()
    with pytest.raises(ConfigError, match=r"^mine.peer has lost the manifest"):
        find_run("mine.peer")


@pytest.mark.parametrize(
    "said",
    [
        ("generate", "tides", "--seed", "-1"),
        ("generate", "tides", "--seed", str(1 << 63)),
        ("eval", "tides", "--data", ""),
    ],
)
def test_what_no_command_can_use_is_refused_in_a_sentence(home: Path, said: tuple[str, ...]) -> None:
    make_run(home / "here" / "mine.peer")
    assert isinstance(atoll(*said).exception, ConfigError)


def test_the_smallest_temperature_takes_the_likeliest(home: Path) -> None:
    make_run(home / "here" / "mine.peer")
    cold, coldest = (atoll("generate", "tides", "--bytes", "5", "--temperature", one).output for one in ("0", "1e-300"))
    assert cold == coldest


def test_a_report_is_of_a_run_by_its_name_as_well(home: Path) -> None:
    make_run(home / "data" / "atoll" / "abc", "tides")
    named = atoll("report", "tides", "--out", "page.html")
    assert named.exit_code == 0, named.output
    assert "tides" in Path("page.html").read_text()
    unknown = atoll("report", "ebbs")
    assert isinstance(unknown.exception, ConfigError)
    assert "There is no run 'ebbs' on this disk" in str(unknown.exception)
