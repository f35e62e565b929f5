"""The ``atoll`` script: hears Ctrl-C while everything else is imported."""

import sys
from typing import NoReturn

from runtime.errors import EXIT_INTERRUPTED


def main() -> NoReturn:
    try:
        from runtime.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
