"""What a volunteer sees of their own peer: lines for what happens and, on a terminal, how far it is below them."""

import errno
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.live import Live
from rich.text import Text

from peers.wire import short
from runtime.config import RunConfig
from runtime.log import Event
from runtime.progress import Given, Progress, download_words, lines

# Without a terminal a download is told of each time that so much more of it is here.
DOWNLOAD_TOLD = 0.1


class LastingConsole(Console):
    """Whoever read what it says may be gone: it says nothing from then on, and nothing ends by that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True

    def _write_buffer(self) -> None:
        try:
            super()._write_buffer()
        except OSError as error:
            # A terminal that was closed; a full disk has room again some day.
            self.quiet = error.errno not in (errno.ENOSPC, errno.EDQUOT)


class View:
    """Writes to standard error, so that standard output keeps to the invite."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or LastingConsole(stderr=True, highlight=False, markup=False)
        self.moves = self._console.is_terminal and not self._console.is_dumb_terminal
        """Whether there is a terminal, on which lines can be written anew."""
        self.given = Given()
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._last_step = 0
        self._drawn: list[str] = []
        self._download: list[str] = []
        self._told = -DOWNLOAD_TOLD

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Shows that something is under way until the block ends; a plain line where there is no terminal."""
        if self.moves:
            return self._console.status(what)
        self.say(f"{what} ...")
        return nullcontext()

    def pausing(self, why: str) -> AbstractContextManager[object]:
        """Shows on a terminal that the peer waits, until the block ends; elsewhere the line that told of it stands."""
        return self._console.status(f"paused: {why}; Ctrl-C ends it") if self.moves else nullcontext()

    def run(self, config: RunConfig, run_id: str, n_elements: int, limits: Sequence[str] = ()) -> None:
        self._last_step = config.outer.steps
        self.say(
            f"run {config.name} ({run_id[:12]}): {n_elements:,} parameters, {config.outer.steps} outer steps of "
            f"{config.inner.steps} inner steps; Ctrl-C leaves"
        )
        if limits:
            self.say(f"limits: {', '.join(limits)}")

    def say(self, line: str) -> None:
        # Some of it is other peers' words: nothing in them is to move the cursor.
        printable = "".join(sign if sign.isprintable() else "?" for sign in line)
        self._console.print(printable, soft_wrap=not self.moves)

    def area(self) -> AbstractContextManager[object]:
        """Below all lines, where ``draw`` draws until the block ends; nothing where there is no terminal."""
        return self._live if self.moves else nullcontext()

    def draw(self, progress: Progress) -> None:
        """Bring the area up to date."""
        if not self.moves:
            return
        drawn = lines(progress, self._console.width, self._download, self._console.options.ascii_only)
        if drawn != self._drawn:
            self._drawn = drawn
            text = Text("\n".join(drawn), no_wrap=True, overflow="crop")
            text.highlight_regex("[━#]+", "cyan")
            self._live.update(text, refresh=True)

    def show(self, event: Event) -> None:
        """One line for what a volunteer wants to know, nothing for the rest."""
        self.given.add(event)
        self._download = download_words(event) if event["event"] == "state_downloading" else self._download
        if event["event"] in ("state_downloaded", "joined", "join_failed"):
            self._download, self._told = [], -DOWNLOAD_TOLD
        if line := self._line(event):
            self.say(line)

    def _line(self, event: Event) -> str | None:
        match event["event"], event:
            case "outer_step_committed", {
                "outer_step": step,
                "members": list(members),
                "loss": loss,
                "round_s": seconds,
            }:
                shown = "-" if loss is None else f"{loss:.3f}"
                round_s = "" if seconds is None else f", round {seconds:.2f} s"
                took_part = f"{len(members)} took part"
                return f"outer step {step}/{self._last_step}: loss {shown}, {took_part}{round_s}"
            case "member_up", {"member": str(member)}:
                return f"member {short([member])} is here"
            case "member_down", {"member": str(member), "reason": reason}:
                return f"member {short([member])} is gone: {reason}"
            case "state_downloading", {"bytes": int(done), "of_bytes": int(total)}:
                if self.moves or done < total * (self._told + DOWNLOAD_TOLD):
                    return None
                self._told = done / total
                what, *words = download_words(event)
                return f"{what}: {', '.join(words)}"
            case "joined", {"outer_step": step}:
                return f"joined at outer step {step}"
            case "validated", {"outer_step": step, "val_loss": None}:
                return f"the validation loss at outer step {step} is not a number: the run has diverged"
            case "validated", {"outer_step": step, "val_loss": float(loss)}:
                return f"validation loss {loss:.4f} nats/byte at outer step {step}"
            case (("strike" | "join_failed" | "manifest_failed") as kind, {"member": str(member), "reason": reason}):
                return f"{kind.replace('_', ' ')}: {short([member])}: {reason}"
            case "checkpoint_failed", {"reason": reason}:
                return f"the state could not be saved, what was saved before stands: {reason}"
            case "checkpoint_torn", {"path": path, "reason": reason}:
                return f"the checkpoint {path} cannot be used and is set aside: {reason}"
            case "log_failed", {"reason": reason}:
                return f"the event log has gaps from here on: {reason}"
            case "fork_found", {"member": str(member), "tokens": int(theirs), "own_tokens": int(ours)}:
                side = "lighter" if ours < theirs else "heavier"
                return f"the run has forked: {short([member])} is on another history; this peer is on the {side} side"
            case "fork_healed", {"kept": ""}:
                return "the fork is healed: this peer has gone over; the disk has no room for the state that it left"
            case "fork_healed", {"kept": str(kept)}:
                return f"the fork is healed: this peer has gone over; the state it left is kept in {kept}"
            case "fork_healed", {"member": str(member)}:
                return f"the fork is healed: {short([member])} is on this history again"
            case "link", {"member": str(member), "kind": "p2pd"}:
                return f"{short([member])} cannot be dialled directly: bulk to it goes over libp2p, which is slower"
            case "reach", {"dialable": False}:
                return "this machine cannot be dialled from outside: it contributes without reducing (see atoll doctor)"
            case "reach", {"dialable": True, "direct": False}:
                return "one of this machine's two ports can be reached from outside: bulk to it goes over libp2p"
            case "reach", {"dialable": True}:
                return "this machine can be dialled from outside"
            case "other_version", {"member": str(member), "protocol": version}:
                return f"{short([member])} speaks protocol {version} and takes no part: its release is another"
            case "diverged", {"outer_step": step}:
                return f"a member has another state of outer step {step} than this peer: the one that more have stands"
            case "member_still", {"member": str(member)}:
                return f"member {short([member])} answers but does not train; nobody waits for it"
            case "member_moves", {"member": str(member)}:
                return f"member {short([member])} trains again"
            case "behind", {"reason": reason}:
                return f"going over to the state of others: {reason}"
            case "work_dropped", {"outer_steps": missed}:
                return f"this peer's work came too late for {missed} outer steps in a row: its link is too slow"
            case "waiting", {"outer_step": step, "needs": needs}:
                return f"outer step {step} waits for more members: it needs {needs}"
            case "left", {"reason": str(reason)}:
                # Of a pause there was a line when it was decided.
                return None if reason == "paused" else f"goodbye: {reason}"
        return None
