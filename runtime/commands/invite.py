"""``atoll invite``: the invite of a run that this disk has, again, to be pasted or scanned."""

import sys
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from runtime.errors import ConfigError
from runtime.folder import Folder, in_use
from runtime.invite import MOST_INVITING, Invite, address_problem, format_invite, nearest_last
from runtime.shelf import KeptRun, find_run, kept_runs

Run = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN", help="Name, beginning of the run id, or folder of a peer.", show_default="the only one"
    ),
]
# Below the code stands the line that says what it is, and the prompt.
LINES_BELOW = 2


def invite(
    run: Run = None,
    qr: Annotated[bool, typer.Option(help="A QR code as well, where a terminal has room for it.")] = True,
) -> int:
    """Print the invite of a run on this disk, also as a QR code."""
    kept = _only_run() if run is None else find_run(run)
    found = invite_of(kept)
    print(format_invite(found), flush=True)
    if not in_use(kept.folder):
        print(
            f"atoll: no peer runs in {kept.folder} now; these are the addresses of the last time, and one of them has"
            " to be there",
            file=sys.stderr,
        )
    console = Console(markup=False, highlight=False)
    if qr and (code := scannable(found, console)) is not None:
        print()
        console.print(code[0], soft_wrap=True)
        if code[1] < len(found.addresses):
            n_all = len(found.addresses)
            print(f"The code has {code[1]} of the {n_all} addresses: for more of them there is no room here.")
    elif qr and console.is_terminal:
        print("atoll: there is no QR code, for want of room or of colours in this terminal", file=sys.stderr)
    return 0


def invite_of(kept: KeptRun) -> Invite:
    """What the peer of this folder printed last, and addresses of other members that it heard of since.

    Raises: ConfigError if it has never been on the network.
    """
    folder = Folder(kept.folder)
    printed = folder.invite
    own = printed.addresses if printed is not None and printed.run_id == kept.manifest.run_id else ()
    # The others' come from them, signed but not checked for what an invite may have.
    others = tuple(address for address in folder.addresses if address_problem(address) is None)
    addresses = tuple(dict.fromkeys((*own, *others)))[:MOST_INVITING]
    if not addresses:
        raise ConfigError(f"{kept.folder} has no address of a peer yet: start the peer once, and it prints an invite")
    token = printed.token if own and printed is not None else None
    return Invite(kept.manifest.run_id, addresses, token)


def scannable(whole: Invite, console: Console) -> tuple[Text, int] | None:
    """The QR code of an invite, and how many of its addresses are in it; None where a console cannot show one.

    Any one address that lives is enough, so where not all have room it is the first of those that most can dial.
    """
    from runtime.qr import drawn

    if not console.is_terminal or console.is_dumb_terminal or console.no_color or console.options.ascii_only:
        return None
    addresses = nearest_last(whole.addresses)
    for n_addresses in range(len(addresses), 0, -1):
        part = replace(whole, addresses=tuple(addresses[:n_addresses]))
        if (code := drawn(format_invite(part), console.width, console.height - LINES_BELOW)) is not None:
            return code, n_addresses
    return None


def _only_run() -> KeptRun:
    """Raises: ConfigError unless this disk has exactly one."""
    runs = kept_runs()
    if not runs:
        raise ConfigError("there is no run on this disk: atoll start opens one, and prints its invite")
    if len(runs) > 1:
        names = ", ".join(f"{one.manifest.config.name} ({one.folder})" for one in runs[:8])
        raise ConfigError(f"this disk has {len(runs)} runs: say which, of {names}")
    return runs[0]
