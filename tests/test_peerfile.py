"""The peer file: flags that hold without being said; what it says is checked as the command line is."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from runtime.cli import app
from runtime.commands.options import peer_config, with_peer_options
from runtime.config import CHANGEABLE, PeerConfig
from runtime.errors import ConfigError
from runtime.peerfile import PEER_FILE, known_keys, read_peer_file, save_settings


def written(folder: Path, text: str) -> Path:
    path = folder / PEER_FILE
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_come_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    written(tmp_path, 'up = "2MB/s"\nthreads = 2\npause-on-battery = true\n')
    config = peer_config({"threads": 3}, tmp_path, tmp_path / "key")
    assert config == PeerConfig(tmp_path, tmp_path / "key", up="2MB/s", threads=3, pause_on_battery=True)


@pytest.mark.parametrize("flag", ["pause-on-battery", "pause-when-busy", "auxiliary"])
def test_what_the_file_has_switched_on_the_command_line_can_switch_off(tmp_path: Path, flag: str) -> None:
    written(tmp_path, f"{flag} = true\n")
    found = list[PeerConfig]()

    @with_peer_options
    def command(said: dict[str, Any], name: str) -> int:
        found.append(peer_config(said, tmp_path, tmp_path / "key"))
        return 0

    app = typer.Typer()
    app.command()(command)
    for arguments in (["run"], ["run", f"--no-{flag}"], ["run", f"--{flag}"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert [getattr(config, flag.replace("-", "_")) for config in found] == [True, False, True]


def test_a_file_may_be_named_and_then_has_to_be_there(tmp_path: Path) -> None:
    written(tmp_path, "threads = 2\n")
    other = tmp_path / "other.toml"
    other.write_text('key = "my.key"\nnice = 0\n')
    config = peer_config({"config": other}, tmp_path, tmp_path / "key")
    assert (config.threads, config.nice, config.key) == (0, 0, Path("my.key"))
    with pytest.raises(ConfigError, match="cannot be read"):
        peer_config({"config": tmp_path / "missing.toml"}, tmp_path, tmp_path / "key")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("upp = 1", "unknown key upp in a peer file; did you mean up?"),
        ("pause_on_battery = true", "did you mean pause-on-battery?"),
        ("folder = 'x'", "unknown key folder"),
        ("anew = true", "unknown key anew"),
        ("up = 2", "up is 2, but must be text in quotes"),
        ("up = '2MB'", "up is '2MB', but must be a rate such as 2MB/s"),
        ("up = '1kB/s'", "from 125kB/s"),
        ("down = '400kB/s'", "from 500kB/s"),
        ("memory = '1kB'", "memory is '1kB', but must be a size such as 4GB, at least 100MB"),
        ("hours = '9-17'", "hours is '9-17', but must be hours such as 22:00-07:00"),
        ("nice = 20", "nice is 20"),
        ("pause-on-battery = 1", "pause-on-battery is 1, but must be true or false"),
        ("[limits]\nup = '2MB/s'", "unknown key limits"),
        ("up =", "not valid TOML"),
    ],
)
def test_a_mistake_in_it_is_one_sentence_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_peer_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_can_be_changed_can_be_kept() -> None:
    assert set(CHANGEABLE) <= set(known_keys().values())


def test_saving_changes_its_own_lines_and_no_others(tmp_path: Path) -> None:
    path = written(tmp_path, '# Mine.\n\nup = "2MB/s"  # for the others\n\nport = 4001\n')
    save_settings(path, {"up": "off", "pause_when_busy": True})
    assert path.read_text() == '# Mine.\n\nup = "off"  # for the others\n\nport = 4001\npause-when-busy = true\n'
    assert read_peer_file(path) == {"up": "off", "port": 4001, "pause_when_busy": True}
    save_settings(path, {"pause_when_busy": False})
    assert read_peer_file(path)["pause_when_busy"] is False


@pytest.mark.parametrize(
    ("line", "saved"),
    [
        ('"up" = "2MB/s"', '"up" = "off"'),
        ("'up'='2MB/s'# \"mine\"", '\'up\'="off"# "mine"'),
        ('  up = "2MB/s" # not "off"', '  up = "off" # not "off"'),
        ('# up = "1MB/s"\nup = "2MB/s"', '# up = "1MB/s"\nup = "off"'),
        ('"up" = "2MB/s"\nkey = "./b # c.key"', '"up" = "off"\nkey = "./b # c.key"'),
    ],
)
def test_a_line_is_changed_however_it_is_written(tmp_path: Path, line: str, saved: str) -> None:
    path = written(tmp_path, f"{line}\n")
    save_settings(path, {"up": "off"})
    assert path.read_text() == f"{saved}\n"
    assert read_peer_file(path)["up"] == "off"


@pytest.mark.parametrize(
    "text", ['"\\u0075p" = "2MB/s"\n', 'up = """\\\n2MB/s"""\n', 'data = """\nup = \'1MB/s\'\n"""\nup = "2MB/s"\n']
)
def test_what_cannot_be_changed_line_by_line_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    read_peer_file(path)
    with pytest.raises(ConfigError, match="change it by hand"):
        save_settings(path, {"up": "off"})
    assert path.read_text() == text


def test_a_new_file_is_made_and_a_broken_one_is_left_alone(tmp_path: Path) -> None:
    save_settings(tmp_path / PEER_FILE, {"hours": "22:00-07:00"})
    assert read_peer_file(tmp_path / PEER_FILE) == {"hours": "22:00-07:00"}
    broken = written(tmp_path, "up = [")
    with pytest.raises(ConfigError, match="not valid TOML"):
        save_settings(broken, {"up": "off"})
    assert broken.read_text() == "up = ["


@pytest.mark.parametrize("command", ["start run.toml", "join atoll:x"])
def test_the_old_names_of_the_caps_are_gone(command: str) -> None:
    for option in ("--upload", "--download"):
        done = CliRunner().invoke(app, [*command.split(), option, "10"])
        assert done.exit_code == 2
        assert "No such option" in done.output
