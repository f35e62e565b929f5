"""A stream to a peer through a third one, who passes the frames on and can neither read nor change them.

Each end makes a key for this stream alone and signs both keys, both names and the protocol: who holds the other end is
as certain as on a connection of its own, whatever the one in between says.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from peers.errors import PeerError, StreamClosed
from peers.identity import Identity, verify
from peers.transport import Frame, Stream

DIALLER_CONTEXT, LISTENER_CONTEXT = "atoll tunnel dialler", "atoll tunnel listener"
KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES = 32, 64, 16


class Tunnel:
    """See ``peers.transport.Stream``. Whatever goes wrong is the end of the stream: nobody knows whose fault it is."""

    def __init__(self, stream: Stream, peer: str, seal_key: bytes, open_key: bytes) -> None:
        self._stream, self._peer = stream, peer
        self._seal, self._open = ChaCha20Poly1305(seal_key), ChaCha20Poly1305(open_key)
        self._n_sent = self._n_received = 0

    @property
    def peer(self) -> str:
        return self._peer

    async def send(self, *parts: Frame) -> None:
        frame = self._seal.encrypt(self._n_sent.to_bytes(12, "big"), b"".join(parts), None)
        # A cancelled send has queued its frame all the same.
        self._n_sent += 1
        try:
            await self._stream.send(frame)
        except PeerError as error:
            raise StreamClosed(self._peer, f"through {self._stream.peer}: {error.reason}") from None

    async def receive(self, max_bytes: int) -> bytes:
        try:
            frame = await self._stream.receive(max_bytes + TAG_BYTES)
            opened = self._open.decrypt(self._n_received.to_bytes(12, "big"), frame, None)
        except PeerError as error:
            raise StreamClosed(self._peer, f"through {self._stream.peer}: {error.reason}") from None
        except (InvalidTag, ValueError):
            self.close()
            raise StreamClosed(self._peer, f"through {self._stream.peer}: a frame was changed") from None
        self._n_received += 1
        return opened

    async def receive_into(self, buffer: memoryview) -> int:
        frame = await self.receive(len(buffer))
        buffer[: len(frame)] = frame
        return len(frame)

    def close(self) -> None:
        self._stream.close()


async def dial_through(stream: Stream, identity: Identity, peer: str, protocol: str) -> Tunnel:
    """The stream to ``peer`` that goes through whoever holds the other end of ``stream``.

    Raises: PeerError, also if it is somebody else.
    """
    own = X25519PrivateKey.generate()
    await stream.send(own.public_key().public_bytes_raw())
    answer = await stream.receive(KEY_BYTES + SIGNATURE_BYTES)
    theirs, signature = answer[:KEY_BYTES], answer[KEY_BYTES:]
    said = _said(own.public_key().public_bytes_raw(), theirs, identity.peer, peer, protocol)
    if not verify(peer, LISTENER_CONTEXT, said, signature):
        raise StreamClosed(peer, f"through {stream.peer}: whoever answers does not prove who it is")
    to_listener, to_dialler = _keys(own, theirs, said, peer)
    tunnel = Tunnel(stream, peer, to_listener, to_dialler)
    await tunnel.send(identity.sign(DIALLER_CONTEXT, said))
    return tunnel


async def accept_through(stream: Stream, identity: Identity, peer: str, protocol: str) -> Tunnel:
    """The other end of ``dial_through``.

    Raises: PeerError, also if it is not ``peer`` who dials.
    """
    theirs = await stream.receive(KEY_BYTES)
    own = X25519PrivateKey.generate()
    public = own.public_key().public_bytes_raw()
    said = _said(theirs, public, peer, identity.peer, protocol)
    to_listener, to_dialler = _keys(own, theirs, said, peer)
    await stream.send(public + identity.sign(LISTENER_CONTEXT, said))
    tunnel = Tunnel(stream, peer, to_dialler, to_listener)
    if not verify(peer, DIALLER_CONTEXT, said, await tunnel.receive(SIGNATURE_BYTES)):
        raise StreamClosed(peer, f"through {stream.peer}: whoever dials does not prove who it is")
    return tunnel


def _said(dialler_key: bytes, listener_key: bytes, dialler: str, listener: str, protocol: str) -> bytes:
    """What both sign. Keys and names have one length each, so that no two of them read alike."""
    return dialler_key + listener_key + dialler.encode() + listener.encode() + protocol.encode()


def _keys(own: X25519PrivateKey, theirs: bytes, said: bytes, peer: str) -> tuple[bytes, bytes]:
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise StreamClosed(peer, "no key for a tunnel") from None
    keys = HKDF(SHA256(), 2 * KEY_BYTES, None, b"atoll tunnel" + said).derive(shared)
    return keys[:KEY_BYTES], keys[KEY_BYTES:]
