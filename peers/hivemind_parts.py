"""The parts of hivemind that are used here, without the rest: its DHT and the libp2p daemon.

The ``__init__`` of each of its packages brings more: its averager, its optimisers and scipy, 0.8 s of CPU and 45 MB at
each start of a peer; and its futures and tensors, which are PyTorch's and of no use to a peer that does not train. So
the packages are put in place without running them, unless somebody else has imported them before.
"""

import importlib
import importlib.util
import logging
import sys
from pathlib import Path

# What hivemind's DHT takes from ``hivemind.utils`` itself -> the module that it is from.
_UTILS = {
    "get_logger": "logging",
    "MSGPackSerializer": "serializer",
    "SerializerBase": "serializer",
    "get_dht_time": "timed_storage",
}


def _put_in_place(package: str) -> bool:
    """Whether the package is there now with nothing in it."""
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    if spec is None:
        return False
    sys.modules[package] = importlib.util.module_from_spec(spec)
    return True


_put_in_place("hivemind")
_put_in_place("hivemind.dht")
if _put_in_place("hivemind.utils"):
    for _name, _module in _UTILS.items():
        _found = getattr(importlib.import_module(f"hivemind.utils.{_module}"), _name)
        setattr(sys.modules["hivemind.utils"], _name, _found)

# ruff: noqa: E402
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.traverse import traverse_dht
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.hivemind_cli import __file__ as _daemon_folder
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.proto import p2pd_pb2
from hivemind.utils import MSGPackSerializer
from hivemind.utils.auth import AuthorizerBase
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.timed_storage import TimedStorage, ValueWithExpiration

# Importing it renames WARNING to WARN for everybody and installs a handler of its own.
logging.addLevelName(logging.WARNING, "WARNING")
use_hivemind_log_handler("nowhere")

P2PD = Path(_daemon_folder or "").parent / "p2pd"
"""The daemon that hivemind's wheel carries."""

__all__ = [
    "DHTID",
    "P2P",
    "P2PD",
    "AuthorizerBase",
    "DHTLocalStorage",
    "DHTNode",
    "DHTRecord",
    "DictionaryDHTValue",
    "MSGPackSerializer",
    "Multiaddr",
    "P2PDaemonError",
    "PeerID",
    "RecordValidatorBase",
    "TimedStorage",
    "ValueWithExpiration",
    "p2pd_pb2",
    "traverse_dht",
]
