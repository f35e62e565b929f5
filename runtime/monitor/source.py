"""Where a picture's events come from: the members of a live run, or the logs of a past one."""

import asyncio
import base64
import importlib
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path

from peers.errors import ProtocolViolation
from runtime.errors import ConfigError
from runtime.folder import MANIFEST_FILE, Folder
from runtime.invite import Invite
from runtime.log import EVENTS_FILE, Event, parse_events, read_log
from runtime.manifest import Manifest, open_manifest
from runtime.monitor.feed import WATCH_PROTOCOL, greeting
from runtime.monitor.history import HISTORY_FILE, happening
from runtime.monitor.picture import Picture
from runtime.monitor.said import MOST_NUMBER
from runtime.monitor.words import plain
from runtime.rotation import logs_below

# The web page that shows it waits no longer than for so many events.
EVENTS_AT_ONCE = 64
# A replayed pause is never longer than this, at any speed: nights are not for watching.
MOST_PAUSE_S = 5.0


class Watched:
    """A run as it is watched: its picture, and how the watching goes.

    ``changed`` is called after each event and whenever something about the watching itself changes.
    """

    def __init__(self, run_id: str = "") -> None:
        self.picture = Picture()
        self.run_id = run_id
        self.manifest: Manifest | None = None
        """Signed, and of this run: what it says is the organiser's word and nobody else's."""
        self.following = ""
        """The member that tells, empty while nobody does."""
        self.trouble = ""
        """A sentence for people, empty if all is well."""
        self.outer_step = 0
        """The last that is known: what an observer's own thread may read while events come in."""
        self.heard_at = time.monotonic()
        self.changed: Callable[[], None] = lambda: None

    @property
    def silent_s(self) -> float:
        """Since when nothing has been heard, seconds."""
        return time.monotonic() - self.heard_at

    def see(self, event: Event) -> None:
        self.heard_at = time.monotonic()
        self.picture.see(event)
        if event.get("event") == "outer_step_committed" and (last := self.picture.last):
            self.outer_step = last.outer_step
        if event.get("event") == "run" and self.manifest is None:
            self._read_manifest()
        if event.get("event") == "refused":
            self.trouble = plain(f"a member will not tell: {str(event.get('reason'))[:100]}")
        self.changed()

    def say(self, trouble: str, following: str = "") -> None:
        self.trouble, self.following = plain(trouble), following
        self.changed()

    def _read_manifest(self) -> None:
        try:
            sealed = base64.b64decode(self.picture.manifest, validate=True)
            self.manifest = open_manifest(sealed, self.run_id or None, self.picture.told_by)
            self.picture.most_step = self.manifest.config.outer.steps
        except (ValueError, ProtocolViolation, ConfigError) as error:
            self.trouble = plain(f"the run's manifest cannot be read: {error}")


def require_observer() -> None:
    """Raises: ConfigError if what follows a run, an extra, is not installed."""
    try:
        importlib.import_module("peers.observer")
    except ImportError as error:
        raise ConfigError(
            f"watching needs the package {error.name or 'libp2p'}: make monitor, or pip install '.[monitor]'"
        ) from None


async def follow_run(invite: Invite, watched: Watched) -> None:
    """Keep the picture up to date from whichever member tells, until cancelled.

    Raises: ConfigError if this installation cannot watch.
    """
    require_observer()
    from peers.observer import Followed, Frame, LostMember, Nobody, follow

    def hello() -> bytes:
        return greeting(invite.run_id, watched.outer_step)

    refused = ""
    async with aclosing(follow(invite.run_id, invite.addresses, WATCH_PROTOCOL, hello)) as seen:
        async for told in seen:
            match told:
                case Followed(peer):
                    watched.say("", peer)
                case Frame(_, body):
                    for number, event in enumerate(parse_events(body), 1):
                        watched.see(event)
                        refused = watched.trouble if event.get("event") == "refused" else ""
                        if not number % EVENTS_AT_ONCE:
                            await asyncio.sleep(0)
                case LostMember(_, reason):
                    why = refused or f"the member that told is gone ({reason})"
                    watched.say(f"{why}; asking another")
                case Nobody(reason, retry_s):
                    why = refused or f"no member answers ({reason})"
                    watched.say(f"{why}; trying again in {retry_s:.0f} s")


def logged(folder: Path) -> list[Event]:
    """The events of all logs in a folder or below it, in the order of time.

    Of what was before its peers came, as much as they have learnt of it.

    Raises: ConfigError if there are none.
    """
    logs = logs_below(folder, EVENTS_FILE) if folder.is_dir() else [folder] if folder.is_file() else []
    pasts = sorted(folder.rglob(HISTORY_FILE)) if folder.is_dir() else []
    try:
        events = [event for log in logs for event in read_log(log) if _is_timed(event)]
        seen = set(map(happening, events))
        for past in pasts:
            new = [event for event in parse_events(past.read_bytes()) if _is_timed(event)]
            events += {key: event for event in new if (key := happening(event)) not in seen}.values()
            seen.update(map(happening, new))
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read ({error.strerror}): mend that, or name another") from None
    if not events:
        raise ConfigError(
            f"there is no event of a run in {folder}: name a peer's folder, or one with such folders in it"
        )
    return sorted(events, key=lambda event: float(event["time"]))


async def replay(events: Sequence[Event], watched: Watched, speed: float) -> None:
    """Let past events happen again, so many times as fast."""
    before = float(events[0]["time"])
    for event in events:
        pause_s = min((event["time"] - before) / speed, MOST_PAUSE_S)
        if pause_s > 0.01:
            await asyncio.sleep(pause_s)
            before = event["time"]
        watched.see(event)


def manifest_below(folder: Path) -> Manifest | None:
    """The manifest that the peers' folders have beside their logs, None if there is none that this release can read."""
    for file in sorted(folder.rglob(MANIFEST_FILE)) if folder.is_dir() else [folder.parent / MANIFEST_FILE]:
        with suppress(ConfigError):
            if file.is_file() and (manifest := Folder(file.parent).manifest()):
                return manifest
    return None


def _is_timed(event: Event) -> bool:
    time = event.get("time")
    return isinstance(time, int | float) and abs(time) <= MOST_NUMBER
