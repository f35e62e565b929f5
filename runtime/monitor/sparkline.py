"""A curve of block signs."""

from collections.abc import Sequence
from itertools import pairwise

from rich.text import Text

LEVELS = " ▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int, n_rows: int) -> list[Text]:
    """The values as columns of blocks, ``n_rows`` lines of at most ``width`` cells, the least value a single eighth.

    Of more values than cells, each cell has the mean of its own; few values are drawn broader. No lines for no values.
    """
    if not values:
        return []
    width = max(1, width)
    if len(values) > width:
        bounds = [len(values) * cell // width for cell in range(width + 1)]
        heights = [sum(values[low:high]) / (high - low) for low, high in pairwise(bounds)]
    else:
        broad = min(4, width // len(values))
        heights = [value for value in values for _ in range(broad)]
    low, high = min(heights), max(heights)
    span = high - low or 1.0
    steps = [1 + round((value - low) / span * (8 * n_rows - 1)) for value in heights]
    return [
        Text("".join(LEVELS[max(0, min(8, step - 8 * row))] for step in steps), style="green", no_wrap=True)
        for row in reversed(range(n_rows))
    ]
