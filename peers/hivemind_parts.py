"""The parts of hivemind that are used here, without the rest: its DHT and the libp2p daemon.

The package's own ``__init__`` brings its averager, its optimisers and scipy: 0.8 s of CPU and 45 MB at each start of a
peer. So the package is put in place without running it, unless somebody else has imported it before.
"""

import importlib.util
import logging
import sys
from pathlib import Path

_spec = importlib.util.find_spec("hivemind")
if _spec is not None:
    sys.modules.setdefault("hivemind", importlib.util.module_from_spec(_spec))

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
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.timed_storage import ValueWithExpiration

# Importing it renames WARNING to WARN for everybody and installs a handler of its own.
logging.addLevelName(logging.WARNING, "WARNING")
use_hivemind_log_handler("nowhere")

P2PD = Path(_daemon_folder or "").parent / "p2pd"
"""The daemon that hivemind's wheel carries."""

__all__ = [
    "DHTID",
    "P2P",
    "P2PD",
    "DHTLocalStorage",
    "DHTNode",
    "DHTRecord",
    "DictionaryDHTValue",
    "MSGPackSerializer",
    "Multiaddr",
    "P2PDaemonError",
    "PeerID",
    "RecordValidatorBase",
    "ValueWithExpiration",
    "p2pd_pb2",
    "traverse_dht",
]
