"""What an event says, for who cannot trust it: each of these returns what has the right form, within bounds.

All raise ValueError for anything else.
"""

# What members send each other has whole numbers below this: no view is to refuse what they have agreed on.
MOST_NUMBER = float(1 << 63)
# Of whatever is told one for each member.
MOST_MEMBERS = 1024
MOST_NAME = 64
MOST_WORDS = 300


def number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_NUMBER:
        raise ValueError("no number")
    return float(value)


def maybe_number(value: object) -> float | None:
    return None if value is None else number(value)


def whole(value: object) -> int:
    count = number(value)
    if count < 0 or count != int(count):
        raise ValueError("no count")
    return int(count)


def peer_id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MOST_NAME or not value.isascii() or not value.isalnum():
        raise ValueError("no peer id")
    return value


def words(value: object, most: int = MOST_WORDS) -> str:
    """What people read, without anything that moves a cursor; a view that knows markup escapes it."""
    if not isinstance(value, str):
        raise ValueError("no words")
    return "".join(sign if sign.isprintable() else "?" for sign in value[:most])


def listed(value: object) -> list[object]:
    if not isinstance(value, list | tuple) or len(value) > MOST_MEMBERS:
        raise ValueError("no list")
    return list(value)
