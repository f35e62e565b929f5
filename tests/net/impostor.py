"""A member on py-libp2p that may say it is somebody else, in a process of its own: its key is always its own."""

import argparse
import json
import sys
from typing import Any

import base58
import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import Ed25519PublicKey, create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.custom_types import TProtocol
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from multiaddr import Multiaddr


async def beat(stream: INetStream) -> None:
    while True:
        await stream.write(b"\x00\x00\x00\x04beat")
        await trio.sleep(0.1)


async def main(options: argparse.Namespace) -> None:
    pair = create_new_key_pair()
    if options.claims:
        # The last 32 bytes of a peer id are the public key.
        public = Ed25519PublicKey.from_bytes(base58.b58decode(options.claims)[-32:])
        vars(pair.private_key)["get_public_key"] = lambda: public
        pair = KeyPair(pair.private_key, public)
    secure: dict[TProtocol, Any]
    if options.security == "plaintext":
        secure = {PLAINTEXT_PROTOCOL_ID: InsecureTransport(pair)}
    else:
        secure = {NOISE: Noise(pair, noise_privkey=create_noise_key().private_key)}
    host = new_host(key_pair=pair, sec_opt=secure)
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        host.set_stream_handler(TProtocol("atoll-watch-1"), beat)
        print(json.dumps({"peer": str(host.get_id()), "address": str(host.get_addrs()[0])}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("security", choices=["plaintext", "noise"])
    parser.add_argument("--claims", default="", help="the peer id of another")
    trio.run(main, parser.parse_args())
