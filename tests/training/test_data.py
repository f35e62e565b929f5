from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from runtime.errors import ConfigError
from runtime.training.data import is_validation_file, load_corpus, sample_batch, validation_batches


def text_of(name: str, n_bytes: int = 4000) -> bytes:
    """Text whose every line names its file, so that a split shows which file a byte came from."""
    line = f"{name} says hello\n".encode()
    return (line * (n_bytes // len(line) + 1))[:n_bytes]


def write_files(folder: Path, names: Iterable[str], n_bytes: int = 4000) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text_of(name, n_bytes))


def bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.tolist())


def test_the_standard_library_is_the_same_on_every_call_and_split_near_the_fraction() -> None:
    first, second = (load_corpus("stdlib", None, 0.05) for _ in range(2))
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.validation, second.validation)
    assert first.train.dtype == first.validation.dtype == torch.uint8
    assert 0.01 < first.validation.numel() / (first.train.numel() + first.validation.numel()) < 0.2
    assert first.n_files > 100


def test_each_file_is_wholly_on_one_side(tmp_path: Path) -> None:
    names = [f"sub{i % 3}/file{i:03}.txt" for i in range(100)]
    write_files(tmp_path, names)
    corpus = load_corpus("files", str(tmp_path), 0.1)
    in_train = {name for name in names if name.encode() in bytes_of(corpus.train)}
    in_validation = {name for name in names if name.encode() in bytes_of(corpus.validation)}
    assert in_train.isdisjoint(in_validation)
    assert in_train | in_validation == set(names)
    assert in_validation == {name for name in names if is_validation_file(name, 0.1)}


def test_the_split_depends_neither_on_order_nor_on_the_other_files(tmp_path: Path) -> None:
    names = [f"file{i:03}.txt" for i in range(100)]
    write_files(tmp_path / "forwards", names)
    write_files(tmp_path / "backwards", reversed(names))
    write_files(tmp_path / "more", [*names, *(f"other{i}.txt" for i in range(20))])
    folders = ("forwards", "backwards", "more")
    forwards, backwards, more = (load_corpus("files", str(tmp_path / folder), 0.1) for folder in folders)
    assert torch.equal(forwards.train, backwards.train)
    assert torch.equal(forwards.validation, backwards.validation)
    assert bytes_of(forwards.validation) in bytes_of(more.validation)


def test_one_file_is_split_by_position(tmp_path: Path) -> None:
    content = b"".join(b"%07d\n" % i for i in range(10_000))
    (tmp_path / "one.txt").write_bytes(content)
    corpus = load_corpus("files", str(tmp_path / "one.txt"), 0.05)
    assert bytes_of(corpus.train) + bytes_of(corpus.validation) == content
    assert corpus.validation.numel() == 4000
    assert corpus.n_files == 1


def test_few_files_have_validation_text_too(tmp_path: Path) -> None:
    write_files(tmp_path, ["a.txt", "b.txt"], 50_000)
    corpus = load_corpus("files", str(tmp_path), 0.05)
    assert corpus.validation.numel() == 5000
    assert corpus.train.numel() == 95_000


def test_a_folder_or_a_glob_leaves_out_what_is_hidden_binary_or_linked(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_files(folder, ["good.txt", ".hidden.txt", ".git/config.txt"], 40_000)
    (folder / "zeros.bin").write_bytes(b"good\0text" * 1000)
    (folder / "latin1.txt").write_bytes(b"\xe9\xe8" * 1000)
    write_files(tmp_path, ["outside.txt"])
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    for path in (folder, folder / "**" / "*"):
        corpus = load_corpus("files", str(path), 0.05)
        assert corpus.n_files == 1
        assert corpus.train.numel() + corpus.validation.numel() == 40_000


def test_a_glob_reads_what_matches_and_hashes_the_path_as_a_folder_does(tmp_path: Path) -> None:
    write_files(tmp_path, [f"file{i:03}.txt" for i in range(60)])
    folder = load_corpus("files", str(tmp_path), 0.1)
    write_files(tmp_path, ["other.md"])
    matched = load_corpus("files", str(tmp_path / "*.txt"), 0.1)
    assert matched.n_files == 60
    assert torch.equal(matched.validation, folder.validation)


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("files", None, "--data"),
        ("files", "missing.txt", "no file or folder"),
        ("files", "empty", "No readable text"),
        ("files", "nothing/*.txt", "No readable text"),
        ("files", "short.txt", "Only 13 bytes"),
        ("web", None, "choose stdlib or files"),
    ],
)
def test_what_cannot_be_trained_on_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, path: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("hello, world\n")
    with pytest.raises(ConfigError, match=message):
        load_corpus(source, path, 0.05)


def test_targets_are_the_tokens_one_byte_later() -> None:
    data = torch.arange(200, dtype=torch.uint8)
    tokens_BT, targets_BT = sample_batch(data, 5, 16, torch.Generator().manual_seed(0))
    assert tokens_BT.dtype == targets_BT.dtype == torch.int64
    assert tokens_BT.shape == (5, 16)
    assert torch.equal(targets_BT, tokens_BT + 1)


def test_a_sample_follows_its_generator() -> None:
    data = torch.arange(250, dtype=torch.uint8)
    seeds = (1, 1, 2)
    first, second, other = (sample_batch(data, 8, 4, torch.Generator().manual_seed(seed))[0] for seed in seeds)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_validation_batches_are_the_same_on_every_call_and_reach_both_ends() -> None:
    data = torch.arange(250, dtype=torch.uint8)
    first, second = (list(validation_batches(data, 4, 8, 3)) for _ in range(2))
    assert len(first) == 3
    for (tokens_BT, targets_BT), (again_BT, _) in zip(first, second, strict=True):
        assert torch.equal(tokens_BT, again_BT)
        assert torch.equal(targets_BT, tokens_BT + 1)
    assert first[0][0][0, 0] == 0
    assert first[-1][1][-1, -1] == 249


def test_text_of_one_window_is_enough_and_less_is_not() -> None:
    sample_batch(torch.zeros(9, dtype=torch.uint8), 2, 8, torch.Generator())
    with pytest.raises(ValueError, match="too few"):
        sample_batch(torch.zeros(8, dtype=torch.uint8), 2, 8, torch.Generator())
