"""Discovery over hivemind's Kademlia DHT, run in our own event loop on the p2pd of ``peers.p2pd``.

hivemind trusts its peers: one malformed value hangs every reader of its key, one plain value hides a dictionary, one
answer that "expires at infinity" ends a search before the honest answers arrive. So every record is checked on its way
into our storage and on its way out of a peer's answer, and every call has a timeout.
"""

import asyncio
import hashlib
import heapq
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peers.errors import NetworkError, Unreachable
from peers.hivemind_parts import (
    DHTID,
    AuthorizerBase,
    DHTLocalStorage,
    DHTNode,
    DHTRecord,
    DictionaryDHTValue,
    MSGPackSerializer,
    PeerID,
    RecordValidatorBase,
    TimedStorage,
    ValueWithExpiration,
    traverse_dht,
)
from peers.p2pd import P2pdTransport

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 3.0
# A call has two phases, finding the peers and asking them: a dead peer may cost one timeout in each.
_RPC_TIMEOUT_S = 1.2
# A bootstrap peer that was restarted is found again within this, by those who are there without it.
LOOK_AGAIN_S = 30.0
MAX_VALUE_BYTES = 4096
MAX_SUBKEY_BYTES = 128
MAX_ENTRIES = 1024
# A day: longer than any clock is wrong, a time zone included.
MAX_LIFETIME_S = 86_400.0
# An answer of 960 full entries just fits into p2pd's largest message of 4 MiB; one more would hide them all.
_MAX_STORED_ENTRIES = 960
# A run has a handful of keys. Bounds what strangers can make us hold to 1 GB.
_MAX_STORED_KEYS = 256
_MAX_NEIGHBOURS = 20
# A request is worked on at one go, in this process's own loop: some 2000 signatures, 0.3 s, at most.
_MAX_REQUEST_BYTES, _MAX_REQUEST_KEYS = 1 << 19, 32


Belongs = Callable[[str, bytes, float], bool]
"""Whether a value may stand under a sub-key until a Unix time."""


class DhtDiscovery:
    """A ``Discovery``: each value under a (key, sub-key) is held by the five peers nearest to the key."""

    def __init__(self, transport: P2pdTransport, bootstrap: Sequence[str], node: DHTNode) -> None:
        self._transport = transport
        self._bootstrap = tuple(bootstrap)
        self._node = node
        self._joining = asyncio.Lock()
        self._closed = False

    @classmethod
    async def create(
        cls,
        transport: P2pdTransport,
        bootstrap: Sequence[str],
        client_mode: bool | None = None,
        belongs: Belongs | None = None,
    ) -> "DhtDiscovery":
        """Join the table of the peers at ``bootstrap``; without any, or if none answers, start one's own.

        A table that could not be joined now is tried again at every call. Takes 10-50 ms. In ``client_mode``, which is
        the transport's if nothing is said, this peer holds nothing for others and is in nobody's table. What is held,
        or believed of who holds it, has to pass ``belongs`` besides.

        Raises: NetworkError if p2pd has ended.
        """
        node_id = DHTID.generate(source=transport.peer)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                # hivemind's caches would only spread and prolong what is false, and its refresh task is never ended.
                node = await DHTNode.create(
                    p2p=transport.p2p,
                    node_id=node_id,
                    client_mode=transport.client_mode if client_mode is None else client_mode,
                    wait_timeout=_RPC_TIMEOUT_S,
                    record_validator=_Validator(belongs),
                    authorizer=_ShortRequests(),
                    cache_locally=False,
                    cache_nearest=0,
                    cache_on_store=False,
                    cache_refresh_before_expiry=0,
                    cache_size=_MAX_STORED_KEYS,
                    reuse_get_requests=False,
                )
        except TimeoutError:
            raise NetworkError("the libp2p daemon p2pd does not answer: start again.") from None
        _mute_abandoned_searches(asyncio.get_running_loop())
        # Who stores says whether it is for the cache, which hides what is stored: there is none.
        node.protocol.storage, node.protocol.cache = _BoundedStorage(_MAX_STORED_KEYS), _BoundedStorage(0)
        _check_answers(node.protocol)
        self = cls(transport, bootstrap, node)
        await self._bounded("join", self._join())
        return self

    async def store(self, key: str, subkey: str, value: bytes, expires_at: float) -> bool:
        """See ``peers.transport.Discovery``. A value of the same sub-key is replaced by a later expiry only.

        False as well if nobody answered within 3 s, or for a value of more than 4096 bytes, a sub-key of more than
        128, or an expiry that is past or more than a day ahead.
        """
        if not self._node.protocol.record_validator.validate(_record(subkey, value, expires_at)):
            logger.warning("record_not_storable", extra={"key": key, "subkey": subkey, "value_bytes": len(value)})
            return False
        # A client is asked by nobody: what it stored in itself would be stored nowhere.
        alone = self._transport.client_mode
        stored = await self._bounded(
            "store", self._joined(self._node.store(key, value, expires_at, subkey=subkey, exclude_self=alone))
        )
        return bool(stored)

    async def get(self, key: str) -> dict[str, bytes]:
        """See ``peers.transport.Discovery``. At most 1024 entries of at most 4096 bytes, within 3 s."""
        found = await self._bounded("get", self._joined(self._node.get(key, latest=True)))
        if found is None or not isinstance(found.value, Mapping):
            return {}
        values = {
            subkey: item.value
            for subkey, item in found.value.items()
            if isinstance(subkey, str) and isinstance(item.value, bytes) and len(item.value) <= MAX_VALUE_BYTES
        }
        # Of too many, each reader takes another sample: no choice of sub-keys can push others out everywhere.
        chosen = sorted(values, key=self._rank)[:MAX_ENTRIES]
        return {subkey: values[subkey] for subkey in sorted(chosen)}

    async def keep_looking(self) -> None:
        """Until cancelled, go to whoever of ``bootstrap`` is not in the table, for they come back and know nobody."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            for address in self._bootstrap:
                await self._bounded("look", self._look_for(address))
            await self._bounded("look", self._node.find_nearest_nodes([self._node.node_id]))

    async def _look_for(self, address: str) -> None:
        peer = address.rpartition("/p2p/")[2]
        if PeerID.from_base58(peer) not in self._node.protocol.routing_table.peer_id_to_uid:
            await self._ping(peer, (address,))

    async def close(self) -> None:
        """Leave the table; close this before the transport. Idempotent."""
        if not self._closed:
            self._closed = True
            await self._bounded("close", self._node.shutdown())

    def _rank(self, subkey: str) -> bytes:
        return hashlib.sha256(f"{self._transport.peer}/{subkey}".encode()).digest()

    async def _joined(self, call: Any) -> Any:
        try:
            await self._join()
        except BaseException:
            call.close()
            raise
        return await call

    async def _join(self) -> None:
        """Fill an empty routing table. It forgets who does not answer, so an outage of our own empties it."""
        async with self._joining:
            if self._node.protocol.routing_table.peer_id_to_uid:
                return
            peers = await self._transport.connected_peers()
            async with asyncio.TaskGroup() as group:
                for address in self._bootstrap:
                    group.create_task(self._ping(address.rpartition("/p2p/")[2], (address,)))
                for peer in peers:
                    group.create_task(self._ping(peer, ()))
            # hivemind enters who answered into the table in tasks of its own, which the search lets run.
            await self._node.find_nearest_nodes([self._node.node_id])

    async def _ping(self, peer: str, addresses: Sequence[str]) -> None:
        if peer == self._transport.peer:
            return
        try:
            await self._transport.connect(peer, addresses)
        except Unreachable as error:
            logger.debug("bootstrap_unreachable", extra={"peer": peer, "reason": error.reason})
        # Not validated: that would demand clocks within 3 s of each other, and that the other can dial us.
        await self._node.protocol.call_ping(PeerID.from_base58(peer), validate=False)

    async def _bounded(self, action: str, call: Any) -> Any:
        """The result of the call; None if it fails or takes more than 3 s."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await call
        except Exception as error:
            logger.debug("dht_call_failed", extra={"action": action, "reason": repr(error)})
            return None


def _mute_abandoned_searches(loop: asyncio.AbstractEventLoop) -> None:
    """A search whose caller has given up goes on in a task of hivemind's, and fails unheard when the peer ends."""
    known = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        future = context.get("future")
        if isinstance(future, asyncio.Task) and getattr(future.get_coro(), "__name__", "") == traverse_dht.__name__:
            logger.debug("dht_search_abandoned", extra={"reason": repr(context.get("exception"))})
        elif known is not None:
            known(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


class _Validator(RecordValidatorBase):  # type: ignore[misc]
    """Only sub-keyed byte strings of bounded size and lifetime enter the storage of an honest peer."""

    def __init__(self, belongs: Belongs | None = None) -> None:
        self._belongs = belongs or (lambda subkey, value, expires_at: True)

    def validate(self, record: DHTRecord) -> bool:
        try:
            return (
                len(record.value) <= MAX_VALUE_BYTES + 5
                and len(record.subkey) <= MAX_SUBKEY_BYTES + 2
                # The first byte says which msgpack type it is: a plain value has the sub-key nil.
                and record.value[0] in (0xC4, 0xC5, 0xC6)
                and (0xA0 <= record.subkey[0] <= 0xBF or record.subkey[0] == 0xD9)
                and len(value := MSGPackSerializer.loads(record.value)) <= MAX_VALUE_BYTES
                and isinstance(subkey := MSGPackSerializer.loads(record.subkey), str)
                and _is_near(record.expiration_time)
                and self._belongs(subkey, value, record.expiration_time)
            )
        except (ValueError, IndexError, TypeError):
            return False


class _ShortRequests(AuthorizerBase):  # type: ignore[misc]
    """hivemind's hook for requests, here for their length. Nothing is signed by it."""

    async def validate_request(self, request: Any) -> bool:
        # A ping has no keys.
        keys = getattr(request, "keys", ())
        return len(keys) <= _MAX_REQUEST_KEYS and request.ByteSize() <= _MAX_REQUEST_BYTES

    async def validate_response(self, response: Any, request: Any) -> bool:
        return True

    async def sign_request(self, request: Any, service_public_key: Any) -> None: ...

    async def sign_response(self, response: Any, request: Any) -> None: ...


class _BoundedStorage(DHTLocalStorage):  # type: ignore[misc]
    """Where it is full what is there stays: nobody can push a run out by keys that live longer."""

    def __init__(self, most_keys: int) -> None:
        super().__init__()
        self._most_keys = most_keys

    def get(self, key: DHTID) -> Any:
        """A copy: hivemind's search puts into what it begins with whatever others answer."""
        return _rebuilt(super().get(key))

    def store_subkey(self, key: DHTID, subkey: str, value: bytes, expiration_time: float) -> bool:
        held = super().get(key)
        entries = DictionaryDHTValue() if held is None else held.value
        if held is None and len(self.data) >= self._most_keys:
            return False
        known = entries.get(subkey)
        if known is None and len(entries) >= _MAX_STORED_ENTRIES:
            return False
        if known is not None and known.expiration_time >= expiration_time:
            return False
        stored = entries.store(subkey, value, expiration_time)
        super().store(key, entries, entries.latest_expiration_time)
        _tidy(entries)
        _tidy(self)
        return bool(stored)


def _tidy(storage: TimedStorage) -> None:
    """hivemind keeps for each store when it is to be forgotten, until then, also where another has replaced it."""
    if len(storage.expiration_heap) > 2 * len(storage.data) + 64:
        storage.expiration_heap = list(storage.key_to_heap.values())
        heapq.heapify(storage.expiration_heap)


def _check_answers(protocol: Any) -> None:
    """Make ``protocol`` rebuild every answer: the validator sees records, not the dictionary that holds them.

    Nor does one entry that is not valid, as by a clock that is wrong, take the others with it.
    """
    ask, is_valid = protocol.call_find, protocol.record_validator.validate

    def keep_valid(key: bytes, dictionary: Any) -> bool:
        data = dictionary.data
        if len(data) > _MAX_STORED_ENTRIES:
            return False
        for subkey, (value, expires_at) in list(data.items()):
            record = DHTRecord(key, MSGPackSerializer.dumps(subkey), value, expires_at)
            if not is_valid(record):
                del data[subkey]
                dictionary.key_to_heap.pop(subkey, None)
        return True

    protocol._validate_dictionary = keep_valid

    async def call_find(peer: PeerID, keys: Any) -> Any:
        answer = await ask(peer, keys)
        if not answer:
            return answer
        return {
            key: (_rebuilt(candidate), dict(list(neighbours.items())[:_MAX_NEIGHBOURS]))
            for key, (candidate, neighbours) in answer.items()
        }

    protocol.call_find = call_find


def _rebuilt(candidate: Any) -> Any:
    """A dictionary with the same live entries and an expiry that follows from them; None for anything else."""
    if candidate is None or not isinstance(candidate.value, DictionaryDHTValue):
        return None
    entries = DictionaryDHTValue()
    for subkey, (value, expires_at) in candidate.value.data.items():
        entries.store(subkey, value, expires_at)
    return ValueWithExpiration(entries, entries.latest_expiration_time) if entries else None


def _is_near(expires_at: float) -> bool:
    now = time.time()
    return now < expires_at < now + MAX_LIFETIME_S


def _record(subkey: str, value: bytes, expires_at: float) -> DHTRecord:
    return DHTRecord(b"", MSGPackSerializer.dumps(subkey), MSGPackSerializer.dumps(value), expires_at)
