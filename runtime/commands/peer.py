"""``atoll keygen``, ``start`` and ``join``: a key, and a peer."""

import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from peers.identity import Identity, IdentityError
from runtime.config import PeerConfig, validate
from runtime.errors import ConfigError
from runtime.invite import parse_invite
from runtime.places import config_home, data_home
from runtime.runfile import load_run_file

KEY_DEFAULT = "~/.config/atoll/identity.key"

Folder = Annotated[Path | None, typer.Option(metavar="DIR", help="This peer's state and event log.")]
Key = Annotated[Path | None, typer.Option(metavar="FILE", help="Private key.", show_default=KEY_DEFAULT)]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(metavar="N", help="CPU threads; 0: as PyTorch chooses.")]
Data = Annotated[str | None, typer.Option(metavar="PATH", help="Text file, folder or glob to train on.")]
Host = Annotated[str, typer.Option(metavar="IP", help="Address to listen on.")]
Port = Annotated[int, typer.Option(metavar="N", help="TCP port; 0: as before, or any free one.")]
Upload = Annotated[float, typer.Option(metavar="MBIT", help="Mbit/s to send at most; 0: any.")]
Download = Annotated[float, typer.Option(metavar="MBIT", help="Mbit/s to take at most; 0: any.")]
Keep = Annotated[int, typer.Option(metavar="K", help="Checkpoints that stay on disk: the newest.")]
KeepEvery = Annotated[int, typer.Option(metavar="N", help="And one of every N-th outer step; 0: none.")]
MetricsPort = Annotated[int, typer.Option(metavar="N", help="Port of 127.0.0.1 for Prometheus.")]
Auxiliary = Annotated[bool, typer.Option("--auxiliary", help="Train nothing; reduce for those who do.")]
Anew = Annotated[bool, typer.Option("--anew", help="Begin again if nobody who was in the run is left.")]
ExitWithStdin = Annotated[bool, typer.Option("--exit-with-stdin", hidden=True)]
InnerStep = Annotated[float, typer.Option("--inner-step-s", hidden=True)]


def keygen(
    path: Annotated[
        Path | None, typer.Argument(help="Where to write it.", metavar="PATH", show_default=KEY_DEFAULT)
    ] = None,
) -> int:
    """Create this machine's private key, and print its peer id. Never overwrites."""
    chosen = _default_key() if path is None else path
    identity = _create_key(chosen, make_parents=path is None)
    print(identity.peer)
    return 0


def start(
    file: Annotated[Path, typer.Argument(help="A run file, as atoll init writes it.", metavar="FILE")],
    folder: Folder = None,
    key: Key = None,
    device: Device = "auto",
    threads: Threads = 0,
    data: Data = None,
    host: Host = "0.0.0.0",
    port: Port = 0,
    upload: Upload = 0.0,
    download: Download = 0.0,
    keep: Keep = 2,
    keep_every: KeepEvery = 0,
    metrics_port: MetricsPort = 0,
    auxiliary: Auxiliary = False,
    anew: Anew = False,
    exit_with_stdin: ExitWithStdin = False,
    inner_step_s: InnerStep = 0.0,
) -> int:
    """Open a run as its first peer, and print the invite.

    Without --folder, the peer's folder lies beside FILE: run.toml has run.peer.
    """
    run_config = load_run_file(file)
    if data is not None and run_config.data.source != "files":
        raise ConfigError(f"{file}: data.source is {run_config.data.source!r}, so --data has no use; set it to 'files'")
    peer_config = PeerConfig(
        folder or file.with_suffix(".peer"),
        key or _default_key(),
        device,
        threads,
        data,
        host,
        port,
        upload,
        download,
        keep,
        keep_every,
        metrics_port,
        auxiliary,
        anew,
        exit_with_stdin,
        inner_step_s,
    )
    _prepare(peer_config, may_make_key=key is None)
    from runtime.app import start as start_peer

    return _run(start_peer(run_config, peer_config))


def join(
    invite: Annotated[str, typer.Argument(help="What atoll start printed: atoll:...", metavar="INVITE")],
    folder: Folder = None,
    key: Key = None,
    device: Device = "auto",
    threads: Threads = 0,
    data: Data = None,
    host: Host = "0.0.0.0",
    port: Port = 0,
    upload: Upload = 0.0,
    download: Download = 0.0,
    keep: Keep = 2,
    keep_every: KeepEvery = 0,
    metrics_port: MetricsPort = 0,
    auxiliary: Auxiliary = False,
    anew: Anew = False,
    exit_with_stdin: ExitWithStdin = False,
    inner_step_s: InnerStep = 0.0,
) -> int:
    """Join a run that someone has invited you to. Ctrl-C leaves it.

    Without --folder, the peer's folder is ~/.local/share/atoll/RUN.
    """
    parsed = parse_invite(invite)
    peer_config = PeerConfig(
        folder or data_home() / parsed.run_id[:12],
        key or _default_key(),
        device,
        threads,
        data,
        host,
        port,
        upload,
        download,
        keep,
        keep_every,
        metrics_port,
        auxiliary,
        anew,
        exit_with_stdin,
        inner_step_s,
    )
    _prepare(peer_config, may_make_key=key is None)
    from runtime.app import join as join_peer

    return _run(join_peer(parsed, peer_config))


def _prepare(config: PeerConfig, may_make_key: bool) -> None:
    """Check what the user has said, and see to it that the key and the folder are there."""
    validate(config, "command line")
    if may_make_key and not os.path.lexists(config.key):
        identity = _create_key(config.key, make_parents=True)
        print(f"atoll: created the key {config.key}; you are {identity.peer}", file=sys.stderr)
    # The peer reads the key again: a broken one is to be known before seconds of imports.
    Identity.load(config.key)
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{config.folder} cannot be the peer's folder ({error.strerror}); name another with --folder"
        ) from None


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


def _default_key() -> Path:
    return config_home() / "identity.key"


def _run(peer: Coroutine[Any, Any, int]) -> int:
    import uvloop

    return uvloop.run(peer)
