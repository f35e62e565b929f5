"""A run as lines of a given width and height: what fits, the most important of it first.

Nothing that others say is markup here: it only ever becomes ``Text``, and what is no printable sign is a question mark.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from runtime.monitor.picture import Picture
from runtime.monitor.pictured import MemberPicture
from runtime.monitor.source import Watched
from runtime.monitor.sparkline import sparkline
from runtime.monitor.summary import codec_of, token_share
from runtime.monitor.words import (
    clock_words,
    count_words,
    duration_words,
    error_words,
    in_order,
    is_fault,
    losses,
    mark_words,
    number_words,
    plain,
    round_times,
    several,
    share_words,
    short,
    time_words,
    usual_step_s,
    waited_for,
)

# A member tells at least once a second what everyone does.
SILENT_S = 3.0
# Below this a line says nothing any more.
LEAST_WIDTH, LEAST_HEIGHT = 20, 4
MOST_EVENTS = 12
# Of the last rounds the median and the longest are told, and as many times as fit.
LAST_ROUNDS = 64
# Phase -> its sign in a bar, which is enough without colours, and its style.
PHASES = {
    "training": ("█", "green"),
    "averaging": ("▓", "cyan"),
    "ready": ("░", "yellow"),
    "behind": ("▒", "magenta"),
    "joining": ("·", "blue"),
    "still": ("x", "red"),
    "auxiliary": ("▓", "cyan"),
}


@dataclass
class Showing:
    """What is shown: a run, live or replayed."""

    watched: Watched
    folder: str = ""
    """Of the logs that are replayed; empty for a live run."""
    speed: float = 1.0
    over: bool = False
    """All has been told."""

    @property
    def now(self) -> float:
        """Unix time, by the clock of whoever tells: that of the last event, and what has passed since."""
        since = 0.0 if self.over else self.watched.silent_s * self.speed
        return self.watched.picture.time + since


def view_lines(showing: Showing, width: int, height: int) -> list[Text]:
    """The view, at most ``height`` lines of at most ``width`` cells."""
    width, height = max(width, LEAST_WIDTH), max(height, LEAST_HEIGHT)
    picture = showing.watched.picture
    top = [title(showing, width), _teller(showing)]
    if picture.steps:
        n_rows = 1 if height < 20 else 2 if height < 36 else 4
        top += [
            _losses(picture),
            *sparkline([loss for _, loss in losses(picture)], width, n_rows),
            _rounds(picture, width),
        ]
    present, gone = picture.present(), [one for one in picture.ranked() if one.gone_at is not None]
    n_events = min(len(picture.marks), MOST_EVENTS)
    wanted = [1 + len(present) + len(gone), 1 + len(picture.round.doing), n_events]
    for_members, for_round, for_events = _share(height - len(top), wanted, least=(5, 4, 3))
    sections = [
        _members([*present, *gone], picture, width, for_members),
        _round(showing, width, for_round),
        _events(picture, for_events),
    ]
    lines = top[: height - 1]
    for section in filter(None, sections):
        if len(lines) + len(section) < height:
            lines.append(Text())
        lines += section
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return lines[:height]


def _share(room: int, wanted: Sequence[int], least: Sequence[int]) -> list[int]:
    """Rows for each section, an empty one before each included in the room: first the least, then what there is."""
    given = [0] * len(wanted)
    for goal in (least, wanted):
        for index, want in enumerate(wanted):
            before = 0 if given[index] else 1
            more = min(min(goal[index], want) - given[index], room - before)
            if more > 0:
                given[index] += more
                room -= more + before
    return given


def title(showing: Showing, width: int) -> Text:
    watched, picture = showing.watched, showing.watched.picture
    manifest, last = watched.manifest, picture.last
    of_steps = f" of {manifest.config.outer.steps}" if manifest else ""
    parts = [
        plain(manifest.config.name, 40) if manifest else "run",
        f"outer step {last.outer_step if last else 0}{of_steps}",
        several(len(picture.present()), "member"),
        duration_words(showing.now - picture.began_at) if picture.time else "",
        codec_of(watched),
        (manifest.run_id if manifest else watched.run_id)[:12],
    ]
    title = Text()
    title.append(parts[0], style="bold")
    for part in filter(None, parts[1:]):
        if cell_len(title.plain) + 3 + cell_len(part) > width:
            break
        title.append(f" · {part}")
    return title


def _teller(showing: Showing) -> Text:
    watched = showing.watched
    if showing.folder:
        done = "the end of" if showing.over else f"{showing.speed:g} times as fast:"
        at = clock_words(showing.now, "%Y-%m-%d %H:%M:%S") if watched.picture.time else ""
        return Text(f"{at}  {done} {plain(showing.folder)}".strip(), style="dim")
    if not watched.picture.time:
        return Text(plain(watched.trouble) or "looking for a member of the run ...", style="yellow")
    line = Text()
    last, manifest = watched.picture.last, watched.manifest
    if last and manifest and last.outer_step >= manifest.config.outer.steps:
        line.append("all outer steps are done; ", style="bold green")
    if watched.silent_s >= SILENT_S:
        line.append(f"no data since {duration_words(watched.silent_s)}", style="bold red")
    elif teller := watched.following or watched.picture.told_by:
        line.append(f"told by {short(plain(teller))}", style="dim")
    if watched.trouble:
        line.append(f"{'; ' if line else ''}{plain(watched.trouble)}", style="yellow")
    return line


def _losses(picture: Picture) -> Text:
    last, known = picture.last, losses(picture)
    line = Text("loss ")
    line.append(number_words(known[-1][1] if known else None), style="bold")
    line.append(f", least {number_words(min((loss for _, loss in known), default=None))}")
    if picture.validations:
        step = max(picture.validations)
        line.append(f"; validation {number_words(picture.validations[step])} at {step}")
    if last:
        line.append(f"; {count_words(last.tokens)} tokens")
        line.append(f"; {share_words(last.participation)} took part" if last.live else "")
    return line


def _rounds(picture: Picture, width: int) -> Text:
    times = round_times(in_order(picture)[-LAST_ROUNDS:])
    if not times:
        return Text("no time of a round yet", style="dim")
    line = f"rounds: median {time_words(median(times))}, longest {time_words(max(times))}; newest first"
    for seconds in reversed(times):
        if len(line) + 1 + len(time_words(seconds)) > width:
            break
        line += f" {time_words(seconds)}"
    return Text(line)


@dataclass(frozen=True)
class Column:
    header: str
    cell: Callable[[MemberPicture, Picture], str]
    importance: int
    """The least important column is the first to go where there is no room."""
    most: int = 9
    left: bool = False


COLUMNS = (
    Column("member", lambda one, _: short(one.peer), 10, left=True),
    Column("doing", lambda one, _: one.doing, 9, left=True),
    Column("device", lambda one, _: one.device, 2, left=True),
    Column("tokens/s", lambda one, _: _known(one.tokens_per_s, count_words), 7),
    Column("up/s", lambda one, _: _known(one.up, _bytes), 3),
    Column("down/s", lambda one, _: _known(one.down, _bytes), 1),
    Column("dialled", lambda one, _: "yes" if one.dialable else "no", 0),
    Column("share", lambda one, picture: share_words(token_share(one, picture)), 8),
    Column("busy", lambda one, _: share_words(one.busy), 6),
    Column("error", lambda one, _: error_words(one.error), 4),
    Column("strikes", lambda one, _: str(one.strikes), 5),
)


def _known(value: float, words: Callable[[float], str]) -> str:
    return words(value) if value else "-"


def _bytes(number: float) -> str:
    return f"{count_words(number)}B"


def _members(members: Sequence[MemberPicture], picture: Picture, width: int, n_rows: int) -> list[Text]:
    if n_rows < 2 or not members:
        return []
    shown = members if len(members) < n_rows else members[: n_rows - 2]
    columns = list(COLUMNS)
    cells = {column: [column.header, *(column.cell(one, picture) for one in shown)] for column in columns}
    widths = {column: min(column.most, max(map(cell_len, cells[column]))) for column in columns}
    while (room := width - sum(widths[column] for column in columns)) < len(columns) - 1 and len(columns) > 1:
        columns.remove(min(columns, key=lambda column: column.importance))
    gap = "  " if room >= 2 * (len(columns) - 1) else " "
    lines = [
        Text(gap.join(_fitted(cells[column][row], widths[column], column.left) for column in columns))
        for row in range(len(shown) + 1)
    ]
    lines[0].stylize("bold")
    for line, one in zip(lines[1:], shown, strict=True):
        line.stylize("dim" if one.gone_at is not None else "red" if one.strikes else "")
    if len(shown) < len(members):
        lines.append(Text(f"and {len(members) - len(shown)} more", style="dim"))
    return lines


def _fitted(words: str, width: int, left: bool) -> str:
    return set_cell_size(words, width) if left else " " * (width - cell_len(words)) + words


def _round(showing: Showing, width: int, n_rows: int) -> list[Text]:
    picture, round_ = showing.watched.picture, showing.watched.picture.round
    if n_rows < 2 or not round_.doing:
        return []
    waited = waited_for(picture)
    head = Text()
    head.append(f"outer step {round_.outer_step}", style="bold")
    if round_.attempt:
        head.append(f", attempt {round_.attempt + 1}")
    if waited:
        more = f" and {len(waited) - 4} more" if len(waited) > 4 else ""
        head.append(f": waits for {', '.join(map(short, waited[:4]))}{more}", style="yellow")
    elif round_.leader:
        head.append(f": led by {short(round_.leader)}")
    for phase in ("training", "ready", "averaging"):
        sign, style = PHASES[phase]
        head.append("  ")
        head.append(f"{sign} {phase}", style=style)
    order = {member.peer: rank for rank, member in enumerate(picture.ranked())}
    peers = sorted(round_.doing, key=lambda peer: (peer not in waited, order.get(peer, len(order))))
    shown = peers if len(peers) < n_rows else peers[: n_rows - 2]
    start = min(spans[0][0] for spans in round_.doing.values())
    # A bar that is full has taken as long as steps do lately, or is the longest.
    whole_s = max(showing.now - start, usual_step_s(picture) or 0.0, 1e-3)
    lines = [head]
    for peer in shown:
        line = Text(f"{short(peer)} ")
        line.append_text(_bar(round_.doing[peer], start, whole_s, showing.now, max(4, width - 18)))
        line.append(f" {round_.doing[peer][-1][1]}")
        lines.append(line)
    if len(shown) < len(peers):
        lines.append(Text(f"and {len(peers) - len(shown)} more", style="dim"))
    return lines


def _bar(spans: Sequence[tuple[float, str]], start: float, whole_s: float, now: float, width: int) -> Text:
    bar = Text()
    for cell in range(width):
        time = start + (cell + 0.5) / width * whole_s
        phase = next((doing for since, doing in reversed(spans) if since <= time), "") if time <= now else ""
        sign, style = PHASES.get(phase, (" ", ""))
        bar.append(sign, style=style)
    return bar


def _events(picture: Picture, n_rows: int) -> list[Text]:
    marks = list(picture.marks)[-n_rows:] if n_rows else []
    return [
        Text(f"{clock_words(mark.time)} {mark.outer_step:>5}  {mark_words(mark)}", "red" if is_fault(mark) else "")
        for mark in reversed(marks)
    ]
