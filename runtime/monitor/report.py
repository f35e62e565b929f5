"""A run as one HTML page to share: numbers, charts, who took part, what happened. Nothing in it is fetched or runs."""

from collections.abc import Callable, Sequence
from html import escape
from statistics import fmean, median

from runtime.demo.report import byte_words, ranges
from runtime.manifest import Manifest
from runtime.monitor.charts import CSS, Axis, Fault, Row, Series, line_chart, timeline
from runtime.monitor.page import STYLE
from runtime.monitor.picture import Picture
from runtime.monitor.pictured import Mark, MemberPicture, StepPicture
from runtime.monitor.summary import token_share
from runtime.monitor.words import (
    NOTHING,
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
)

MOST_ROWS, MOST_EVENTS = 40, 300
STEP = Axis("outer step", kind="whole")
SECONDS = Axis("time", duration_words, "time", from_zero=True)


def report(picture: Picture, name: str, manifest: Manifest | None) -> str:
    """The page. ``name`` is for people; of the manifest come the run id and what the run set out to do."""
    steps, start = in_order(picture), picture.began_at
    body = [
        _head(picture, name, manifest, start),
        _tiles(picture, steps, manifest),
        _card("Loss", _loss_charts(picture, steps, start), "Training loss, and validation loss as dots (nats/byte)."),
        _card("Members", _members_chart(steps), "Who took part in each outer step, and who was there (dashed)."),
        _card("Who was there", _timeline(picture, start), "A row for each member; faults are red."),
        _card("Rounds", _round_chart(steps), "From the plan to the applied step, seconds."),
        _card("Quantisation error", _error_chart(steps), "Of the contributions as they were sent, relative, mean."),
        _card("Time spent training", _busy_chart(steps), "Part of each outer step in which its members trained, mean."),
        _card("Contributors", _contributors(picture), "By the tokens that they trained on.", wide=True),
        _card("Events", _events(picture, start), "Comings, goings and faults, the last first.", wide=True),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(plain(name))}: a run of Atoll</title>\n<style>{STYLE}{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _head(picture: Picture, name: str, manifest: Manifest | None, start: float) -> str:
    began, ended = (clock_words(time, "%Y-%m-%d %H:%M", utc=True) for time in (start, picture.time))
    facts = [f"{began} to {ended} UTC"]
    if manifest:
        config = manifest.config
        facts += [f"run {manifest.run_id}", f"model {config.model.preset}", f"codec {config.averaging.codec}"]
        facts.append(f"{config.inner.steps} inner steps an outer step")
    said = "".join(f"<li>{escape(plain(fact))}</li>" for fact in facts)
    return f"<header><h1>{escape(plain(name))}</h1><ul>{said}</ul></header>"


def _tiles(picture: Picture, steps: Sequence[StepPicture], manifest: Manifest | None) -> str:
    last, known, times = picture.last, [loss for _, loss in losses(picture)], round_times(steps)
    least = min(known, default=None)
    of_steps = f" of {manifest.config.outer.steps}" if manifest else ""
    took_part = [step.participation for step in steps if step.live]
    validations = [number_words(picture.validations[step]) for step in sorted(picture.validations)]
    faults = sum(map(is_fault, picture.marks))
    busy = [step.busy for step in steps if step.busy is not None]
    errors = [step.error for step in steps if step.error is not None]
    tiles = (
        ("outer steps", f"{last.outer_step if last else 0}{of_steps}", f"in {duration_words(_length_s(picture))}"),
        ("training loss", number_words(known[-1] if known else None), f"least {number_words(least)}"),
        ("validation loss", validations[-1] if validations else NOTHING, _from(validations)),
        ("tokens", count_words(last.tokens) if last else NOTHING, _token_rate(picture)),
        ("members", str(max((step.n_members for step in steps), default=0)), f"at once; {len(picture.members)} in all"),
        ("took part", share_words(fmean(took_part) if took_part else None), "of those there, mean step"),
        ("round", f"{median(times):.2f} s" if times else NOTHING, f"longest {max(times):.2f} s" if times else ""),
        ("training", share_words(fmean(busy) if busy else None), "of the time, mean member"),
        ("quantisation error", error_words(fmean(errors) if errors else None), "of a contribution, mean"),
        ("faults", str(faults), several(sum(one.strikes for one in picture.members.values()), "strike")),
    )
    shown = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd><dd>{escape(note)}</dd></div>"
        for label, value, note in tiles
    )
    return f'<dl class="tiles">{shown}</dl>'


def _from(validations: Sequence[str]) -> str:
    return f"from {validations[0]}" if len(validations) > 1 else ""


def _length_s(picture: Picture) -> float:
    return picture.time - picture.began_at


def _token_rate(picture: Picture) -> str:
    last, length_s = picture.last, _length_s(picture)
    return f"{count_words(last.tokens / length_s)} a second" if last and length_s > 0 else ""


def _card(title: str, content: str, note: str, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f"<section{kind}><h2>{escape(title)}</h2><p>{escape(note)}</p>{content}</section>"


def _loss_charts(picture: Picture, steps: Sequence[StepPicture], start: float) -> str:
    """Against three axes; which is shown is chosen by radio buttons, without a script."""
    axes: tuple[tuple[str, Axis, Callable[[StepPicture], float]], ...] = (
        ("steps", STEP, lambda step: float(step.outer_step)),
        ("tokens", Axis("tokens", count_words, from_zero=True), lambda step: step.tokens),
        ("time", SECONDS, lambda step: step.time - start),
    )
    buttons, charts = [], []
    for number, (name, axis, across) in enumerate(axes):
        curve = [(across(step), step.loss) for step in steps if step.loss is not None]
        # Before the first outer step no tokens and no time have been spent.
        at = {0: 0.0, **{step.outer_step: across(step) for step in steps}}
        dots = [(at[step], loss) for step, loss in sorted(picture.validations.items()) if step in at]
        chart = line_chart(
            [Series("training loss", sorted(curve)), Series("validation loss", dots, tone=2, dots=True)],
            axis,
            Axis("loss", _tick),
            _step_faults(picture.marks, at),
        )
        checked = " checked" if number == 0 else ""
        buttons.append(f'<input type="radio" name="x" id="x{number}"{checked}><label for="x{number}">{name}</label>')
        charts.append(f'<div class="by">{chart}</div>')
    return f'<div class="tabs">{"".join(buttons)}{"".join(charts)}</div>'


def _step_faults(marks: Sequence[Mark], at: dict[int, float]) -> list[Fault]:
    faults = [mark for mark in marks if is_fault(mark) and mark.outer_step in at]
    return [Fault(at[mark.outer_step], f"step {mark.outer_step}: {mark_words(mark)}") for mark in faults]


def _members_chart(steps: Sequence[StepPicture]) -> str:
    took_part = [(float(step.outer_step), float(step.n_members)) for step in steps]
    there = [(float(step.outer_step), float(step.live)) for step in steps if step.live]
    series = [Series("members there", there, tone=3), Series("members that took part", took_part)]
    return line_chart(series, STEP, Axis("member", kind="whole", from_zero=True))


def _round_chart(steps: Sequence[StepPicture]) -> str:
    points = [(float(step.outer_step), step.round_s) for step in steps if step.round_s is not None]
    return line_chart([Series("round time", points)], STEP, Axis("round time", _tick, from_zero=True))


def _error_chart(steps: Sequence[StepPicture]) -> str:
    points = [(float(step.outer_step), step.error) for step in steps if step.error is not None]
    axis = Axis("quantisation error", lambda error: f"{100 * error:.3g} %", from_zero=True)
    return line_chart([Series("quantisation error", points, tone=2)], STEP, axis)


def _busy_chart(steps: Sequence[StepPicture]) -> str:
    points = [(float(step.outer_step), step.busy) for step in steps if step.busy is not None]
    axis = Axis("time spent training", share_words, from_zero=True)
    return line_chart([Series("time spent training", points)], STEP, axis)


def _tick(value: float) -> str:
    return f"{value:.3g}"


def _timeline(picture: Picture, start: float) -> str:
    everyone = sorted(picture.members.values(), key=lambda one: (-one.tokens, one.peer))
    stays = stays_of(picture, start)
    faults: dict[str, list[Fault]] = {}
    for mark in filter(is_fault, picture.marks):
        faults.setdefault(mark.member, []).append(Fault(mark.time, mark_words(mark)))
    rows = [Row(short(one.peer), stays[one.peer], faults.get(one.peer, ())) for one in everyone[:MOST_ROWS]]
    rest = len(everyone) - len(rows)
    more = f'<p class="none">and {several(rest, "member")} more</p>' if rest else ""
    return timeline(rows, start, picture.time) + more


def stays_of(picture: Picture, start: float) -> dict[str, list[tuple[float, float]]]:
    """By member from when to when it was there, Unix seconds, as the marks have it."""
    stays: dict[str, list[tuple[float, float]]] = {peer: [] for peer in picture.members}
    came: dict[str, float] = {}
    for mark in picture.marks:
        if mark.kind == "came":
            came.setdefault(mark.member, mark.time)
        elif mark.kind == "gone" and mark.member in stays:
            stays[mark.member].append((came.pop(mark.member, start), mark.time))
    for peer, member in picture.members.items():
        if member.gone_at is None:
            stays[peer].append((came.get(peer, member.came_at), picture.time))
    return stays


def _contributors(picture: Picture) -> str:
    everyone = sorted(picture.members.values(), key=lambda one: (-one.tokens, one.peer))
    if not everyone:
        return '<p class="none">no member is known</p>'
    took_part: dict[str, list[int]] = {one.peer: [] for one in everyone}
    for step in in_order(picture):
        for peer in step.members:
            if peer in took_part:
                took_part[peer].append(step.outer_step)
    most = max(1, everyone[0].tokens)
    rows = [_contributor(rank, one, picture, took_part[one.peer], most) for rank, one in enumerate(everyone, 1)]
    return _table(HEADS, "".join(rows), "ranks")


HEADS = (
    *("", "member", "tokens", "", "outer steps", "device"),
    *("tokens/s", "busy", "error", "sent", "received", "strikes"),
)


def _contributor(rank: int, one: MemberPicture, picture: Picture, steps: Sequence[int], most: int) -> str:
    cells = (
        str(rank),
        f'<abbr title="{escape(one.peer)}">{escape(short(one.peer))}</abbr>',
        f"{count_words(one.tokens)} <small>{share_words(token_share(one, picture))}</small>",
        f'<span class="bar" style="width:{2 + 118 * one.tokens / most:.0f}px"></span>',
        f'<abbr title="{escape(ranges(steps)[:2000])}">{one.n_steps}</abbr>',
        escape(one.device or NOTHING),
        count_words(one.tokens_per_s) if one.tokens_per_s else NOTHING,
        share_words(one.busy),
        error_words(one.error),
        byte_words(round(one.sent_bytes)) if one.sent_bytes else NOTHING,
        byte_words(round(one.received_bytes)) if one.received_bytes else NOTHING,
        str(one.strikes),
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _events(picture: Picture, start: float) -> str:
    if not picture.marks:
        return '<p class="none">nothing happened</p>'
    shown = list(picture.marks)[-MOST_EVENTS:]
    rows = "".join(_event(mark, start) for mark in reversed(shown))
    rest = len(picture.marks) - len(shown)
    more = f'<p class="none">and {rest:,} before these</p>' if rest else ""
    return _table(("after", "step", ""), rows, "events") + more


def _table(heads: Sequence[str], rows: str, kind: str) -> str:
    head = "".join(f"<th>{one}</th>" for one in heads)
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _event(mark: Mark, start: float) -> str:
    kind = ' class="bad"' if is_fault(mark) else ""
    after = duration_words(mark.time - start)
    return f"<tr{kind}><td>{after}</td><td>{mark.outer_step:,}</td><td>{escape(plain(mark_words(mark)))}</td></tr>"
