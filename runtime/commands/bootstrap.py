"""``atoll bootstrap``."""

from pathlib import Path
from typing import Annotated

import typer

from runtime.commands.options import Host, check_addresses
from runtime.commands.peer import prepare_key, run
from runtime.config import PeerConfig, validate
from runtime.invite import parse_invite
from runtime.machine import allow_files
from runtime.places import guide_key


def bootstrap(
    invite: Annotated[
        str | None,
        typer.Argument(help="Of a run to lead to; without one, of any run.", metavar="[INVITE]", show_default=False),
    ] = None,
    peers: Annotated[
        str, typer.Option("--peers", metavar="ADDR,...", help="Other bootstrap peers.", show_default="none")
    ] = "",
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key.", show_default="~/.config/atoll/bootstrap.key")
    ] = None,
    host: Host = "0.0.0.0",
    port: Annotated[int, typer.Option(metavar="N", help="TCP port; 0: any free one.")] = 4001,
) -> int:
    """Lead peers to each other, without model and PyTorch.

    For a machine that is always there. Prints its addresses, for atoll start --bootstrap; with an INVITE also that
    invite with its own address in it. Ctrl-C ends it.
    """
    parsed = parse_invite(invite) if invite is not None else None
    others = tuple(peers.split(",")) if peers else ()
    check_addresses("--peers", others)
    chosen = key or guide_key()
    validate(PeerConfig(folder=Path(), key=chosen, host=host, port=port), "command line")
    prepare_key(chosen, may_make_it=key is None)
    allow_files()
    from runtime.bootstrap import lead

    return run(lead(chosen, host, port, others, parsed))
