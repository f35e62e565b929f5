"""What can go wrong between peers, and who is to blame."""


class PeerError(Exception):
    """A remote peer failed or misbehaved; ``peer`` says which."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"peer {peer}: {reason}")
        self.peer = peer
        self.reason = reason


class Unreachable(PeerError):
    """No stream to the peer could be opened. Volunteers leave: this is no offence."""


class StreamClosed(PeerError):
    """The stream ended, by the peer's death, its will or a broken link."""


class ProtocolViolation(PeerError):
    """The peer sent what no correct implementation sends. Worth a strike."""


class NetworkError(Exception):
    """This machine cannot take part: a port in use, dead bootstrap addresses, a daemon that does not start.

    The message is one sentence with the fix in it, ready to be shown to a user.
    """
