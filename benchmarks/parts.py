"""A benchmark of several parts: the command line that chooses among them, and their results as JSON."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

Part = Callable[[ExitStack, bool], dict[str, Any]]
"""Takes what undoes all that it begins, and whether a quick look is enough; prints a table."""


def run_parts(benchmark: str, about: str, parts: Sequence[Part]) -> None:
    """Run those that the command line names, all of them without any, each under its function's name."""
    known = {part.__name__: part for part in parts}
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(known)}; all of them without any")
    parser.add_argument("--quick", action="store_true", help="far fewer trials, no figures to publish")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in known]:
        parser.error(f"no such part: {unknown[0]}; there are {', '.join(known)}")
    # Ended from outside, it still leaves no process and no namespace behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = {}
    for part in options.parts or known:
        with ExitStack() as stack:
            results[part] = known[part](stack, options.quick)
    print(json.dumps({"benchmark": benchmark, "quick": options.quick, **results}))
