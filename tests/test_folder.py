"""A peer's folder at its first moment: what a full disk or a strange one leaves of it."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from peers.identity import Identity
from runtime.config import RunConfig
from runtime.errors import ConfigError, NotNowError
from runtime.folder import MANIFEST_FILE, Folder, in_use, lock
from runtime.manifest import Manifest, sign_manifest


@pytest.fixture
def manifest() -> Manifest:
    return sign_manifest(Identity.from_seed(bytes(32)), RunConfig(), bytes(32), "nonce")


def test_a_disk_that_is_full_at_the_first_join_leaves_a_folder_that_can_be_joined_from(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        # It may have room later: a service tries again.
        with pytest.raises(NotNowError, match="No space left"):
            Folder(tmp_path).claim(manifest)
    assert list(tmp_path.iterdir()) == []
    assert Folder(tmp_path).manifest() is None
    Folder(tmp_path).claim(manifest)
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST_FILE]
    Folder(tmp_path).claim(manifest)


def test_a_file_system_without_locks_is_not_taken_for_another_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def no_locks(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        patch.setattr(fcntl, "flock", no_locks)
        with pytest.raises(ConfigError, match="cannot be locked") as raised:
            lock(tmp_path)
        assert not isinstance(raised.value, NotNowError)
        assert not in_use(tmp_path)
    give_back = lock(tmp_path)
    assert in_use(tmp_path)
    give_back()
    assert not in_use(tmp_path)


def test_a_file_beside_which_no_other_can_be_made_is_written_over(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.keep_port(4001)
    (tmp_path / ".port.new").mkdir()
    folder.keep_port(4002)
    assert folder.port == 4002


def test_a_folder_that_has_lost_its_manifest_is_who_joins_it_again_and_no_new_run(tmp_path: Path) -> None:
    for name in ("checkpoints", "joining"):
        (tmp_path / name).mkdir()
    Folder(tmp_path).check_no_others(joins=True)
    with pytest.raises(ConfigError, match="has checkpoints and not the manifest that says what its run is: atoll join"):
        Folder(tmp_path).check_no_others(joins=False)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="such as thesis"):
        Folder(tmp_path).check_no_others(joins=True)
