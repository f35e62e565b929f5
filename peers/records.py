"""Where a run's members can be dialled, by their own word: signed records in the DHT, which anyone can write to."""

from functools import lru_cache

from peers.errors import ProtocolViolation
from peers.membership import Known
from peers.messages import RECORD, MemberRecord
from peers.wire import unseal

MEMBER_CONTEXT = "atoll member record"
# An hour of clock difference each way, and an hour to be found in.
RECORD_TTL_S = 3 * 3600.0


def members_key(run_id: str) -> str:
    """Under which the DHT has the member records of a run."""
    return f"atoll/{run_id}/members"


def is_own(subkey: str, value: bytes, expires_at: float) -> bool:
    """Whether an entry of the DHT is its sub-key's own word, kept for no longer than that says.

    Of two entries the one with the later expiry stays: nobody is to take another's place by it, not with an old word of
    theirs either.
    """
    signed = _signed(value)
    return signed is not None and signed[0] == subkey and expires_at <= signed[1].expires_at


@lru_cache(maxsize=4096)
def _signed(value: bytes) -> tuple[str, MemberRecord] | None:
    """Who has signed a record, and what is in it; looked at again and again."""
    try:
        signer, body = unseal(value, MEMBER_CONTEXT, "")
        return signer, RECORD.decode(body, signer)
    except ProtocolViolation:
        return None


def read_records(values: dict[str, bytes], run_id: str, now_unix: float) -> list[Known]:
    """The usable member records among ``values``, sorted by peer id.

    Dropped without a word, since anyone can write them: forged, expired, of another run, under another peer's sub-key,
    of a peer that left, or with an expiry further away than any honest writer sets.
    """
    read = [(peer, read_record(value, run_id, now_unix)) for peer, value in sorted(values.items())]
    return [record[0] for peer, record in read if record is not None and record[0].peer == peer]


def read_record(value: bytes, run_id: str, now_unix: float) -> tuple[Known, float] | None:
    """What a record says, and until when."""
    if (signed := _signed(value)) is None:
        return None
    signer, record = signed
    fresh = now_unix < record.expires_at <= now_unix + 2 * RECORD_TTL_S
    if record.run_id != run_id or not fresh or record.left:
        return None
    return Known(signer, record.addresses), record.expires_at
