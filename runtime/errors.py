"""What can go wrong on this side of the cable, and who is to blame."""


class ConfigError(Exception):
    """The user's mistake. The message is one sentence with the fix in it, and the exit code 2."""


class RoundAborted(Exception):
    """A round ended without a commit. Nobody's fault: volunteers leave. Nothing was applied."""
