"""A QR code on a terminal: two modules a sign, black on white whatever the terminal's own colours are."""

import segno
from rich.text import Text

# What the standard (ISO/IEC 18004) wants around a code, in modules.
QUIET = 4
# Both colours are said: a code in the terminal's own would be inverted on a dark one, which not every scanner reads.
INK, PAPER = "#000000", "#ffffff"
UPPER, LOWER, FULL, EMPTY = "▀", "▄", "█", " "
SIGNS = {(1, 0): UPPER, (0, 1): LOWER, (1, 1): FULL, (0, 0): EMPTY}


def drawn(text: str, columns: int, rows: int) -> Text | None:
    """The QR code of a text of ASCII signs, in lines of one length; None if there is no such room for it."""
    try:
        # L: a screen has no dirt on it, and a smaller code is read from further away.
        code = segno.make(text, error="L", micro=False, mode="byte", encoding="ascii")
    except segno.DataOverflowError:
        return None
    width = len(code.matrix[0]) + 2 * QUIET
    if width > columns or -(-width // 2) > rows:
        return None
    modules = [list(row) for row in code.matrix_iter(border=QUIET)]
    if len(modules) % 2:
        modules.append([0] * width)
    pairs = zip(modules[::2], modules[1::2], strict=True)
    lines = ("".join(SIGNS[pair] for pair in zip(upper, lower, strict=True)) for upper, lower in pairs)
    return Text("\n", no_wrap=True).join(Text(line, style=f"{INK} on {PAPER}") for line in lines)
