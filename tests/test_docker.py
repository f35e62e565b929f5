"""The images and the compose file, as far as text can tell. docker/smoke.sh runs them: that takes an engine."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.commands.peer import join, start
from runtime.runfile import load_run_file

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PEERS = ("first", "joiner-1", "joiner-2", "capped")
IMAGES = ("Dockerfile", "Dockerfile.monitor")


def instructions(name: str) -> list[tuple[str, str]]:
    """Each with what follows it, over as many lines as it takes."""
    text = "\n".join(line for line in (DOCKER / name).read_text("utf-8").splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines) if word]


def last_stage(name: str) -> list[tuple[str, str]]:
    found = instructions(name)
    return found[max(number for number, (word, _) in enumerate(found) if word == "FROM") :]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_without_rights_under_an_init_and_can_be_asked_how_it_is(name: str) -> None:
    stage = last_stage(name)
    words = [word for word, _ in stage]
    assert ("USER", "atoll") in stage
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert ("STOPSIGNAL", "SIGTERM") in stage
    assert ("ENTRYPOINT", '["tini", "--", "atoll"]') in stage
    assert "HEALTHCHECK" in words
    # What compiles, and what pip left, is in the stages before.
    assert not [rest for word, rest in stage if word == "RUN"]


@pytest.mark.parametrize("name", IMAGES)
def test_all_that_an_image_copies_is_in_its_context(name: str) -> None:
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()}
    copied = [rest for word, rest in instructions(name) if word == "COPY" and not rest.startswith("--from")]
    assert copied
    for rest in copied:
        *sources, _ = rest.split()
        for source in sources:
            assert source in allowed
            assert (ROOT / source).exists()


def test_the_images_and_the_script_for_an_engine_without_a_registry_name_one_base() -> None:
    named = {
        *(rest for name in IMAGES for word, rest in instructions(name) if word == "ARG" and rest.startswith("BASE=")),
        *(f"BASE={tag}" for tag in re.findall(r"\$\{1:-(\S+)\}", (DOCKER / "base-image.sh").read_text("utf-8"))),
    }
    assert len(named) == 1


def test_no_peer_can_read_the_key_of_another() -> None:
    homes = set()
    for name in PEERS:
        (home,) = (volume for volume in SERVICES[name]["volumes"] if volume.endswith(":/data"))
        homes.add(home)
    assert len(homes) == len(PEERS)
    for name in ("joiner-1", "joiner-2", "capped", "dashboard"):
        others = [volume for volume in SERVICES[name]["volumes"] if not volume.endswith(":/data")]
        assert others == ["invite:/first:ro"]
    # Not its folder: a socket in it is for whoever has the peer's user id, which they all have.
    script = SERVICES["first"]["entrypoint"][4]
    assert "invite:/shared" in SERVICES["first"]["volumes"]
    assert "ln -sfn /shared/invite run/invite" in script
    assert "--folder run " in script


def test_every_container_ends_with_a_goodbye_comes_back_and_is_bounded() -> None:
    assert all(service["restart"] == "unless-stopped" for service in SERVICES.values())
    assert all("mem_limit" in service and service["logging"]["options"]["max-size"] for service in SERVICES.values())
    for name in PEERS:
        assert SERVICES[name]["stop_grace_period"] == "30s"
        assert SERVICES[name]["healthcheck"]["test"] == ["CMD", "atoll", "status"]
    # Five that work, on two cores.
    assert sum(SERVICES[name]["cpus"] for name in (*PEERS, "dashboard")) <= 2.3


def test_what_the_peers_are_told_is_what_they_know() -> None:
    flags = {f"--{name.replace('_', '-')}" for command in (start, join) for name in command.__annotations__}
    said = [word for name in PEERS for word in SERVICES[name].get("command", ()) if word.startswith("--")]
    for name in ("first", "capped"):
        script = SERVICES[name]["entrypoint"][4].replace(";", " ")
        said += [word for word in shlex.split(script) if word[:2] == "--"]
    assert len(said) >= 6
    assert set(said) <= flags
    assert load_run_file(DOCKER / "run.toml").averaging.quorum == 2


def test_prometheus_and_grafana_are_an_option_and_find_each_other() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" in service} == {"prometheus", "grafana"}
    command = SERVICES["first"]["command"]
    port = command[command.index("--metrics-port") + 1]
    assert f"127.0.0.1:{port}" in (DOCKER / "prometheus.yml").read_text("utf-8")
    assert SERVICES["prometheus"]["network_mode"] == "service:first"
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "atoll.yaml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://first:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "atoll.yaml").read_text("utf-8"))["providers"]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounted["./grafana/atoll.json"] == f"{provider['options']['path']}/atoll.json"
    assert json.loads((DOCKER / "grafana" / "atoll.json").read_text("utf-8"))["title"] == "Atoll"


def test_the_scripts_are_whole() -> None:
    for name in ("smoke.sh", "base-image.sh"):
        assert (DOCKER / name).stat().st_mode & 0o111
        shell = "bash" if name == "smoke.sh" else "sh"
        subprocess.run([shell, "-n", str(DOCKER / name)], check=True)
