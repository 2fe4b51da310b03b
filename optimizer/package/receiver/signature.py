"""Was the artifact signed by the key that the receiver trusts? Every file but the signature must be under it.

The signature is what OpenSSF model-signing writes: a Sigstore bundle with a DSSE envelope around an in-toto statement
that lists the SHA-256 of every file. A signature by a key is checked here with integers alone (ECDSA, FIPS 186-5,
section 6.4.2; curves of SP 800-186); one by a certificate needs the model-signing package.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.package.receiver.files import describe_file, text_of, walk
from optimizer.package.receiver.words import CANNOT, SIGNATURE, USAGE, Finding, Refusal, Trust

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE = "https://model_signing/signature/v1.0"


@dataclass(frozen=True)
class Curve:
    """y² = x³ - 3x + b over the field of ``p`` elements, with a base point ``g`` of prime order ``n``."""

    name: str
    p: int
    b: int
    g: tuple[int, int]
    n: int
    digest: str

    @property
    def size(self) -> int:
        """Bytes of a coordinate."""
        return (self.p.bit_length() + 7) // 8


# Curves of NIST SP 800-186, section 3.2.1, by the DER of their object identifiers.
CURVES = {
    bytes.fromhex("2a8648ce3d030107"): Curve(
        "P-256",
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
        (
            0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
            0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
        ),
        0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
        "sha256",
    ),
    bytes.fromhex("2b81040022"): Curve(
        "P-384",
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
        (
            0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7,
            0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F,
        ),
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
        "sha384",
    ),
    bytes.fromhex("2b81040023"): Curve(
        "P-521",
        2**521 - 1,
        int(
            "51953eb9618e1c9a1f929a21a0b68540eea2da725b99b315f3b8b489918ef109"
            "e156193951ec7e937b1652c0bd3bb1bf073573df883d2c34f1ef451fd46b503f00",
            16,
        ),
        (
            int(
                "c6858e06b70404e9cd9e3ecb662395b4429c648139053fb521f828af606b4d3d"
                "baa14b5e77efe75928fe1dc127a2ffa8de3348b3c1856a429bf97e7e31c2e5bd66",
                16,
            ),
            int(
                "11839296a789a3bc0045c8a5fb42c7d1bd998f54449579b446817afbd17273e6"
                "62c97ee72995ef42640c550b9013fad0761353c7086a272c24088be94769fd16650",
                16,
            ),
        ),
        2**521 - int("5ae79787c40d069948033feb708f65a2fc44a36477663b851449048e16ec79bf7", 16),
        "sha512",
    ),
}
OBJECT_EC_KEY = bytes.fromhex("2a8648ce3d0201")


def check_signature(root: Path, trust: Trust) -> list[Finding]:
    """What the signature is worth. Raises :class:`Refusal` for keys that are none, and when nothing here can check."""
    if trust.required and trust.key is None and not trust.roots:
        message, hint = "a signature proves nothing without a key to hold it to", "Add --key or --certificate."
        raise Refusal(message, USAGE, hint=hint, code="usage")
    if trust.key is None and not trust.roots:
        if not (root / SIGNATURE).is_file():
            return []
        return [Finding("signature", True, f"{SIGNATURE} was not checked: give the maker's --key", warning=True)]
    key = None if trust.key is None else read_key(trust.key)
    if not (root / SIGNATURE).is_file():
        return [Finding("signature", False, f"it is not signed: there is no {SIGNATURE}")]
    if key is None:
        return [_by_certificate(root, trust)]
    try:
        payload = _opened(json.loads(text_of(root / SIGNATURE)), key)
        wrong = _uncovered(root, json.loads(payload))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        return [Finding("signature", False, f"{SIGNATURE} is no signature of an artifact: {error}")]
    said = "it covers every file, by the key given"
    return [Finding("signature", not wrong, wrong or said)]


def _opened(bundle: Mapping[str, Any], key: Key) -> bytes:
    """The payload of the envelope, empty when another key signed it."""
    envelope = bundle["dsseEnvelope"]
    if envelope["payloadType"] != PAYLOAD_TYPE or len(envelope["signatures"]) != 1:
        raise ValueError("it is not one signature over an in-toto statement")
    payload = base64.b64decode(envelope["payload"], validate=True)
    signed = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload
    return payload if key.verifies(signed, base64.b64decode(envelope["signatures"][0]["sig"], validate=True)) else b"{}"


def _uncovered(root: Path, statement: Mapping[str, Any]) -> str:
    """Why the signed statement is not about what lies here, as text."""
    if not statement:
        return "it was made with another key, or changed since"
    if statement["predicateType"] != PREDICATE:
        raise ValueError(f"it states '{statement['predicateType']}'")
    signed = {r["name"]: r["digest"] for r in statement["predicate"]["resources"] if r["algorithm"] == "sha256"}
    found = walk(root)[0] - {SIGNATURE}
    for name in sorted(found ^ set(signed)):
        return f"{name} is {'not signed' if name in found else 'signed but missing'}"
    changed = [n for n in sorted(found) if describe_file(root / n)["sha256"] != signed[n]]
    return f"changed since it was signed: {', '.join(changed)}" if changed else ""


def _by_certificate(root: Path, trust: Trust) -> Finding:
    """The same question asked of the model-signing package, which knows certificates."""
    try:
        import model_signing
    except ImportError:
        message, hint = "certificates are checked by model-signing, which is not installed", "pip install model-signing"
        raise Refusal(message, CANNOT, hint=hint, code="missing-package") from None
    try:
        library: Any = model_signing
        asked = library.verifying.Config().use_certificate_verifier(certificate_chain=trust.roots)
    except (OSError, ValueError) as error:
        raise Refusal("this is not a PEM certificate", where=str(trust.roots[0]), code="bad-key") from error
    plain = library.hashing.Config().set_ignored_paths(paths=[root / SIGNATURE], ignore_git_paths=False)
    try:
        asked.set_hashing_config(plain).verify(root, root / SIGNATURE)
    except Exception as error:  # each library below it has errors of its own
        return Finding("signature", False, " ".join(str(error).split())[:300] or type(error).__name__)
    return Finding("signature", True, "it covers every file, by a certificate of the authority given")


# -- elliptic curves ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Key:
    """A public key: a point on a curve."""

    curve: Curve
    point: tuple[int, int]

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` (DER of two integers) was made over ``message`` with the key of this point."""
        curve = self.curve
        body, rest = _der(signature, 0x30)
        first, tail = _der(body, 0x02)
        second, more = _der(tail, 0x02)
        r, s = int.from_bytes(first, "big"), int.from_bytes(second, "big")
        if rest or more or not (0 < r < curve.n and 0 < s < curve.n):
            return False
        hashed = int.from_bytes(hashlib.new(curve.digest, message).digest(), "big")  # never longer than n
        inverse = pow(s, -1, curve.n)
        one = _times(curve, hashed * inverse % curve.n, curve.g)
        place = _sum(curve, one, _times(curve, r * inverse % curve.n, self.point))
        return place is not None and place[0] % curve.n == r


def read_key(path: Path) -> Key:
    """A public key from a PEM file. Raises :class:`Refusal` that says what the file is instead."""
    try:
        text = text_of(path)
    except (OSError, ValueError) as error:
        raise Refusal("the key cannot be read", where=str(path), code="bad-key") from error
    begin, _, rest = text.partition("-----BEGIN PUBLIC KEY-----")
    if not rest:
        kind = begin.partition("-----BEGIN ")[2].partition("-----")[0].lower()
        message = (
            f"this is {'an' if kind[0] in 'aeio' else 'a'} {kind}, not a public key"
            if kind
            else "this is not a PEM public key"
        )
        hint = "openssl ec -in private.pem -pubout writes the public one." if "private" in kind else ""
        raise Refusal(message, where=str(path), hint=hint, code="bad-key")
    try:
        return _key(base64.b64decode(rest.partition("-----END")[0]))
    except (ValueError, IndexError, binascii.Error) as error:
        message, hint = f"this key cannot be used: {error}", "It must be of the curve P-256, P-384 or P-521."
        raise Refusal(message, where=str(path), hint=hint, code="bad-key") from error


def _key(der: bytes) -> Key:
    outer, _ = _der(der, 0x30)
    algorithm, rest = _der(outer, 0x30)
    kind, named = _der(algorithm, 0x06)
    curve = CURVES.get(_der(named, 0x06)[0]) if kind == OBJECT_EC_KEY else None
    if curve is None:
        raise ValueError("it is of another kind")
    bits, _ = _der(rest, 0x03)
    if len(bits) != 2 + 2 * curve.size or bits[:2] != b"\x00\x04":
        raise ValueError("its point is not written out in full")
    x, y = (int.from_bytes(bits[2 + i * curve.size :][: curve.size], "big") for i in (0, 1))
    if max(x, y) >= curve.p or (y * y - x * x * x + 3 * x - curve.b) % curve.p:
        raise ValueError("its point is not on the curve")
    return Key(curve, (x, y))


def _der(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the first DER element, which must have this tag, and what comes after it."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("its DER is damaged")
    size, start = data[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start], "big")
    if len(data) < start + size:
        raise ValueError("its DER is cut short")
    return data[start : start + size], data[start + size :]


def _sum(curve: Curve, a: tuple[int, int] | None, b: tuple[int, int] | None) -> tuple[int, int] | None:
    """The sum of two points; ``None`` is the point at infinity."""
    if a is None or b is None:
        return a or b
    (x1, y1), (x2, y2), p = a, b, curve.p
    if x1 == x2 and (y1 + y2) % p == 0:
        return None
    slope = (3 * x1 * x1 - 3) * pow(2 * y1, -1, p) if a == b else (y2 - y1) * pow(x2 - x1, -1, p)
    x = (slope * slope - x1 - x2) % p
    return x, (slope * (x1 - x) - y1) % p


def _times(curve: Curve, factor: int, point: tuple[int, int]) -> tuple[int, int] | None:
    total, adding = None, point
    while factor:
        total = _sum(curve, total, adding) if factor & 1 else total
        adding, factor = _sum(curve, adding, adding), factor >> 1  # type: ignore[assignment]
    return total
