"""``atoll keygen``, ``start`` and ``join``: a key, and a peer."""

import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from peers.identity import Identity, IdentityError
from runtime.commands.options import KEY_DEFAULT, peer_config, with_peer_options
from runtime.config import PeerConfig
from runtime.doctor.fitness import checks_before_joining, warnings_of
from runtime.errors import ConfigError, blame_for
from runtime.folder import Folder
from runtime.invite import parse_invite
from runtime.machine import allow_files, wait_with_io
from runtime.places import default_key, joined_folder, opened_folder
from runtime.runfile import load_run_file


def keygen(
    path: Annotated[
        Path | None, typer.Argument(help="Where to write it.", metavar="PATH", show_default=KEY_DEFAULT)
    ] = None,
) -> int:
    """Create this machine's private key, and print its peer id.

    Never overwrites.
    """
    chosen = default_key() if path is None else path
    identity = _create_key(chosen, make_parents=path is None)
    print(identity.peer)
    return 0


@with_peer_options
def start(
    said: dict[str, Any],
    file: Annotated[Path, typer.Argument(help="A run file, as atoll init writes it.", metavar="FILE")],
) -> int:
    """Open a run as its first peer, and print the invite.

    Without --folder, the peer's folder lies beside FILE: run.toml has run.peer.
    """
    if str(file).startswith("atoll:"):
        raise ConfigError("that is an invite to a run that is open: atoll join takes part in it")
    run_config = load_run_file(file)
    config = peer_config(said, opened_folder(file), default_key())
    if config.data is not None and run_config.data.source != "files":
        raise ConfigError(f"{file}: data.source is {run_config.data.source!r}, so --data has no use; set it to 'files'")
    _prepare(config, joins=False)
    from runtime.app import start as start_peer

    return run(start_peer(run_config, config))


@with_peer_options
def join(
    said: dict[str, Any],
    invite: Annotated[str, typer.Argument(help="What atoll start printed: atoll:...", metavar="INVITE")],
) -> int:
    """Join a run that someone has invited you to. Ctrl-C leaves it.

    Without --folder, the peer's folder is ~/.local/share/atoll/RUN.
    """
    parsed = parse_invite(invite)
    config = peer_config(said, joined_folder(parsed.run_id), default_key())
    _prepare(config, joins=True)
    for warning in warnings_of(checks_before_joining()):
        print(f"atoll: {warning}", file=sys.stderr)
    from runtime.app import join as join_peer

    return run(join_peer(parsed, config))


def _prepare(config: PeerConfig, joins: bool) -> None:
    """See to it that the key and the folder are there."""
    prepare_key(config.key, may_make_it=config.key == default_key())
    allow_files()
    if config.nice:
        # Now: threads and children have what the thread has that begins them.
        wait_with_io()
    try:
        Folder(config.folder).check_no_others(joins)
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise blame_for(error)(
            f"{config.folder} cannot be the peer's folder ({error.strerror}); name another with --folder"
        ) from None


def prepare_key(key: Path, may_make_it: bool) -> None:
    """See to it that there is one. A broken one is to be known now, before seconds of imports."""
    if may_make_it and not os.path.lexists(key):
        identity = _create_key(key, make_parents=True)
        print(f"atoll: created the key {key}; you are {identity.peer}", file=sys.stderr)
    Identity.load(key)


def _create_key(path: Path, make_parents: bool) -> Identity:
    if make_parents:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise IdentityError(
                f"{path.parent} cannot be created ({error.strerror}): name a key file elsewhere."
            ) from None
    identity = Identity.generate()
    identity.save(path)
    return identity


def run(peer: Coroutine[Any, Any, int]) -> int:
    import uvloop

    return uvloop.run(peer)
