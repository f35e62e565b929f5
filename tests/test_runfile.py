import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.config import RUN_LIMITS, ModelSection, PeerConfig, RunConfig, first_difference, validate
from runtime.errors import ConfigError
from runtime.runfile import field_docs, load_run_file, render_run_file, run_config_from_table

FLOATS = st.floats(min_value=0, max_value=1000, exclude_min=True)
CONFIGS = st.builds(
    RunConfig,
    name=st.text(min_size=1, max_size=64).filter(lambda text: text.isprintable() and not text.isspace()),
    model=st.builds(ModelSection, preset=st.sampled_from(["toy", "large"]), seed=st.integers(0, 2**63 - 1)),
)


def replaced(key: str, value: Any) -> RunConfig:
    section, _, name = key.rpartition(".")
    config = RunConfig()
    if not section:
        return dataclasses.replace(config, **{name: value})
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})


def error_of(text: str, tmp_path: Path) -> str:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_run_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_the_defaults_are_within_their_limits() -> None:
    validate(RunConfig())
    validate(PeerConfig(folder=Path("folder"), key=Path("key")))


def test_every_key_has_a_limit_and_documentation() -> None:
    keys = set()
    for section in dataclasses.fields(RunConfig):
        default = getattr(RunConfig(), section.name)
        if dataclasses.is_dataclass(default):
            docs = field_docs(type(default))
            assert all(docs.values())
            keys |= {f"{section.name}.{name}" for name in docs}
        else:
            keys.add(section.name)
    assert keys == set(RUN_LIMITS)


@given(CONFIGS)
def test_a_rendered_file_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> None:
    path = tmp_path_factory.mktemp("run") / "run.toml"
    path.write_text(render_run_file(config), encoding="utf-8")
    assert load_run_file(path) == config


@given(st.sampled_from(["inner.learning_rate", "inner.clip_norm", "outer.learning_rate"]), FLOATS)
def test_any_float_reads_back_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, key: str, value: float) -> None:
    config = replaced(key, value)
    path = tmp_path_factory.mktemp("run") / "run.toml"
    path.write_text(render_run_file(config), encoding="utf-8")
    assert load_run_file(path) == config


def test_a_rendered_file_explains_every_key() -> None:
    lines = render_run_file(RunConfig()).splitlines()
    keys = [index for index, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(keys) == len(RUN_LIMITS)
    assert all(lines[index - 1].startswith("# ") and len(lines[index - 1]) > 3 for index in keys)
    assert max(map(len, lines)) <= 120


def test_what_is_not_in_the_file_has_its_default_and_whole_numbers_stand_for_floats(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[inner]\n")
    assert load_run_file(path) == RunConfig()
    path.write_text("\ufeff[inner]\nclip_norm = 2\n", encoding="utf-8")
    loaded = load_run_file(path)
    assert loaded.inner.clip_norm == 2.0
    assert type(loaded.inner.clip_norm) is float


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[inner]\nstepz = 3", "unknown key inner.stepz; did you mean inner.steps?"),
        ("[iner]\nsteps = 3", "unknown section iner; did you mean inner?"),
        ("learning_rate = 0.1", "unknown key learning_rate; did you mean inner.learning_rate or outer.learning_rate?"),
        ("zzz = 1", "unknown key zzz; known are name, model,"),
        ("inner = 3", "inner is 3, but is a section; write it as [inner]"),
        ("[[inner]]\nsteps = 3", "inner is [{'steps': 3}], but is a section; write it as [inner]"),
        ("[inner]\nsteps = true", "inner.steps is True, but must be a whole number"),
        ("[inner]\nsteps = 2.5", "inner.steps is 2.5, but must be a whole number"),
        ('[inner]\nlearning_rate = "fast"', "inner.learning_rate is 'fast', but must be a number"),
        ("[inner]\nlearning_rate = true", "inner.learning_rate is True, but must be a number"),
        (f"[inner]\nlearning_rate = 1{'0' * 400}", "too large for a number"),
        (f"[inner]\nsteps = 1{'0' * 5000}", "not valid TOML"),
        ("name = 5", "name is 5, but must be text in quotes"),
        ("name = ", "not valid TOML"),
        ("a = " + "[" * 100_000, "not valid TOML"),
        ("[inner]\nsteps = 0", "inner.steps is 0, but must be a whole number from 1 to 2147483647"),
        ("[outer]\nmomentum = 1.0", "outer.momentum is 1.0, but must be a number from 0 up to, but not, 1"),
        (
            "[data]\nvalidation_fraction = 0.5",
            "data.validation_fraction is 0.5, but must be a number above 0 and below",
        ),
        ('[data]\nsource = "web"', "data.source is 'web', but must be stdlib or files"),
        (
            '[averaging]\ncodec = "int4"',
            "averaging.codec is 'int4', but must be int8, auto, float32, float16, codebook8 or fp4",
        ),
        ('name = "a\\nb"', "name is 'a\\nb', but must be 1 to 64 printable characters"),
    ],
)
def test_a_mistake_is_named_with_its_file_key_value_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    assert said in error_of(text, tmp_path)


@pytest.mark.parametrize("key", [key for key in RUN_LIMITS if isinstance(replaced(key, 0), RunConfig)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, -1.0, 2**64, None, [], ""])
def test_no_key_takes_a_value_that_makes_no_sense(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        validate(replaced(key, value))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["name", "inner", "steps", "seed", "x\n"]), inner),
)


@given(st.dictionaries(st.sampled_from(["name", "inner", "model", "x\n"]), JSON))
def test_any_table_is_a_configuration_or_one_sentence(table: dict[str, object]) -> None:
    try:
        validate(run_config_from_table(table, "manifest"))
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file; write one with: atoll init"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
    ],
    ids=["missing", "folder", "binary"],
)
def test_a_file_that_cannot_be_read_is_the_users_to_mend(tmp_path: Path, make, said: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.toml"
    make(path)
    with pytest.raises(ConfigError, match=said):
        load_run_file(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("device", "gpu"),
            ("host", "localhost"),
            ("device", "cuda:"),
            ("threads", -1),
            ("port", 65536),
            ("port", True),
        ),
        *(("up", "10"), ("down", "400kB/s"), ("memory", "4G"), ("disk", "1MB"), ("hours", "9-17"), ("nice", 20)),
    ],
)
def test_a_peers_own_settings_have_limits_too(field: str, value: Any) -> None:
    config = dataclasses.replace(PeerConfig(Path("folder"), Path("key")), **{field: value})
    with pytest.raises(ConfigError, match=f"^command line: {field} is"):
        validate(config, "command line")


def test_what_an_edited_run_file_says_otherwise_is_named() -> None:
    assert first_difference(RunConfig(), RunConfig()) == ""
    edited = replaced("outer.steps", 7)
    assert first_difference(RunConfig(), edited) == "there outer.steps is 20, in the run file 7"
