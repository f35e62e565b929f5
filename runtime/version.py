"""Which Atoll this is."""

import importlib.metadata


def version() -> str | None:
    """Of the installed package; None where Atoll runs from its sources."""
    try:
        return importlib.metadata.version("atoll")
    except importlib.metadata.PackageNotFoundError:
        return None
