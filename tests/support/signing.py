"""Signatures made with integers alone, so that tests of the receiver need no package for it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.package.receiver import signature as receiver
from optimizer.package.receiver.signature import CURVES, PAYLOAD_TYPE, PREDICATE, Curve

P256 = next(iter(CURVES.values()))


@dataclass(frozen=True)
class Pair:
    """A private number and the public key that belongs to it."""

    secret: int
    curve: Curve = P256

    def write_public(self, path: Path) -> Path:
        point = receiver._times(self.curve, self.secret, self.curve.g)
        assert point is not None
        size = self.curve.size
        coded = b"\x04" + b"".join(c.to_bytes(size, "big") for c in point)
        named = next(k for k, c in CURVES.items() if c is self.curve)
        algorithm = der(0x30, der(0x06, receiver.OBJECT_EC_KEY) + der(0x06, named))
        text = base64.encodebytes(der(0x30, algorithm + der(0x03, b"\x00" + coded))).decode()
        path.write_text(f"-----BEGIN PUBLIC KEY-----\n{text}-----END PUBLIC KEY-----\n")
        return path

    def signed(self, message: bytes) -> bytes:
        """ECDSA with a nonce that is no secret: good for tests only."""
        curve, nonce = self.curve, 0xC0FFEE + self.secret
        place = receiver._times(curve, nonce, curve.g)
        assert place is not None
        r = place[0] % curve.n
        hashed = int.from_bytes(hashlib.new(curve.digest, message).digest(), "big")
        s = pow(nonce, -1, curve.n) * (hashed + r * self.secret) % curve.n
        return der(0x30, b"".join(der(0x02, i.to_bytes(curve.size + 1, "big")) for i in (r, s)))

    def sign(self, folder: Path, **changes: Any) -> None:
        """Write ``model.sig`` over every other file of the artifact."""
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "model.sig")
        resources = [
            {
                "name": p.relative_to(folder).as_posix(),
                "algorithm": "sha256",
                "digest": hashlib.sha256(p.read_bytes()).hexdigest(),
            }
            for p in files
        ]
        statement = {"predicateType": PREDICATE, "predicate": {"resources": resources}} | changes
        payload = json.dumps(statement).encode()
        signed = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload
        signatures = [{"sig": base64.b64encode(self.signed(signed)).decode()}]
        envelope = {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": signatures,
        }
        (folder / "model.sig").write_text(json.dumps({"dsseEnvelope": envelope}))


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    head = bytes([size]) if size < 128 else bytes([0x81, size])
    return bytes([tag]) + head + content
