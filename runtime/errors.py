"""What can go wrong on this side of the cable, and who is to blame. And what the process's exit code says of it."""

import errno

# What is so now may be otherwise in half a minute: a service tries again. A bug, with its traceback, is 1 as well.
EXIT_NOT_NOW = 1
EXIT_USAGE = 2
# As shells have it: 128 and the number of SIGINT.
EXIT_INTERRUPTED = 130


class ConfigError(Exception):
    """The user's mistake. The message is one sentence with the fix in it, and the exit code 2."""


class NotNowError(ConfigError):
    """What stands in the way may go without the user, such as another process. The exit code is 1."""


def blame_for(error: OSError) -> type[ConfigError]:
    """What to raise for a file that cannot be written: a full disk has room again some day."""
    return NotNowError if error.errno in (errno.ENOSPC, errno.EDQUOT) else ConfigError


def reason_of(error: Exception) -> str:
    """In words, without the path that an OSError names: others may be told."""
    return getattr(error, "strerror", None) or str(error)


class RoundAborted(Exception):
    """A round ended without a commit. Nobody's fault: volunteers leave. Nothing was applied."""
