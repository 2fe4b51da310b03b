"""Signatures of OpenSSF model-signing: ours and the library agree on what holds; attestations follow their schemas."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.faults import Exit, Fault
from optimizer.package import artifact
from optimizer.package.check import Trust, verify
from optimizer.package.signing import sign
from tests.package import parts

model_signing = pytest.importorskip("model_signing", reason="model-signing is not installed (the extra sign)")
pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed (the extra sign)")

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: E402

PEM, PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()
PKCS8, SPKI = serialization.PrivateFormat.PKCS8, serialization.PublicFormat.SubjectPublicKeyInfo
CURVES = {"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1}
EVIDENCE = {
    "final": {
        "quality": {"metric": "top1", "value": 0.9, "low": 0.88, "high": 0.92},
        "latency_ms": {"p50": 0.25, "low": 0.24, "high": 0.26},
    },
    "quality_drop": {"value": 0.001, "low": 0.0, "high": 0.002},
}


def write_key(place: Path, name: str, key: Any) -> tuple[Path, Path]:
    private, public = place / f"{name}.pem", place / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(PEM, PKCS8, PLAIN))
    public.write_bytes(key.public_key().public_bytes(PEM, SPKI))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    home = tmp_path_factory.mktemp("keys")
    return {name: write_key(home, name, ec.generate_private_key(curve())) for name, curve in CURVES.items()} | {
        "other": write_key(home, "other", ec.generate_private_key(ec.SECP256R1()))
    }


@pytest.fixture
def made(tmp_path: Path) -> Path:
    contents = parts.contents(licence={"license": "MIT"})
    contents = artifact.Contents(contents.model, contents.manifest, EVIDENCE, contents.report, contents.golden)
    return artifact.write(tmp_path / "a.lathe", contents)


def trusting(folder: Path, trust: Trust) -> bool:
    """Whether the signature alone holds: the model is not run."""
    from optimizer.package.receiver.signature import check_signature

    return all(f.ok for f in check_signature(folder, trust))


def library_accepts(folder: Path, public: Path) -> bool:
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
    plain = model_signing.hashing.Config().set_ignored_paths(paths=[folder / "model.sig"], ignore_git_paths=False)
    try:
        config.set_hashing_config(plain).verify(folder, folder / "model.sig")
    except Exception:
        return False
    return True


@pytest.mark.parametrize("curve", CURVES)
def test_ours_and_the_library_agree(made: Path, keys: dict[str, tuple[Path, Path]], curve: str) -> None:
    private, public = keys[curve]
    sign(made, key=private)
    other = keys["other"][1]
    assert trusting(made, Trust(key=public)) and library_accepts(made, public)
    assert not trusting(made, Trust(key=other)) and not library_accepts(made, other)
    (made / "report.md").write_text("better than it is")
    assert not trusting(made, Trust(key=public)) and not library_accepts(made, public)
    (made / "more.txt").write_text("unsigned")
    assert not trusting(made, Trust(key=public)) and not library_accepts(made, public)


def test_a_signed_artifact_holds_as_a_whole_and_can_be_signed_anew(
    made: Path, keys: dict[str, tuple[Path, Path]]
) -> None:
    private, public = keys["p256"]
    before = {p.name for p in made.iterdir()}
    sign(made, key=private)
    assert {p.name for p in made.iterdir()} - before == {"model.sig", "provenance.json", "bom.cdx.json"}
    assert verify(made, trust=Trust(required=True, key=public)).ok
    attested = [(made / n).read_bytes() for n in ("provenance.json", "bom.cdx.json")]
    with pytest.raises(Fault, match="signed already"):
        sign(made, key=private)
    sign(made, key=keys["other"][0], overwrite=True)
    assert [(made / n).read_bytes() for n in ("provenance.json", "bom.cdx.json")] == attested
    assert trusting(made, Trust(key=keys["other"][1])) and not trusting(made, Trust(key=public))


def test_certificates(made: Path, tmp_path: Path, keys: dict[str, tuple[Path, Path]]) -> None:
    authority, root = certificate(tmp_path, "root", None)
    _, leaf = certificate(tmp_path, "leaf", authority)
    sign(made, key=tmp_path / "leaf.pem", certificate=leaf, chain=[root])
    assert trusting(made, Trust(roots=(root,)))
    _, stranger = certificate(tmp_path, "stranger", None)
    assert not trusting(made, Trust(roots=(stranger,)))
    assert not trusting(made, Trust(key=keys["p256"][1]))
    with pytest.raises(Fault, match="not a PEM certificate"):
        verify(made, trust=Trust(roots=(keys["p256"][1],)))
    (made / "report.md").write_text("better than it is")
    assert not trusting(made, Trust(roots=(root,)))


def certificate(place: Path, name: str, by: Any) -> tuple[Any, Path]:
    """A key with its certificate, from an authority or its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    write_key(place, name, key)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer, issuer_key = (subject, key) if by is None else by
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    usage = x509.KeyUsage(by is not None, False, False, False, False, by is None, False, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(day)
        .not_valid_after(day + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    path = place / f"{name}.crt"
    path.write_bytes(made.public_bytes(PEM))
    return (subject, key), path


def an_rsa_key(place: Path) -> Path:
    return write_key(place, "rsa", rsa.generate_private_key(65537, 2048))[0]


def an_encrypted_key(place: Path) -> Path:
    path = place / "encrypted.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret")))
    return path


def a_public_key(place: Path) -> Path:
    return write_key(place, "some", ec.generate_private_key(ec.SECP256R1()))[1]


def damaged(place: Path) -> Path:
    (place / "bad.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    return place / "bad.pem"


def no_pem(place: Path) -> Path:
    (place / "notes.txt").write_text("dear diary")
    return place / "notes.txt"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (an_rsa_key, "of another kind"),
        (an_encrypted_key, "is encrypted"),
        (a_public_key, "public key, not a private key"),
        (damaged, "is damaged"),
        (no_pem, "not a PEM private key"),
        (lambda place: place / "nowhere.pem", "cannot be read"),
    ],
)
def test_keys_of_the_wrong_kind(made: Path, tmp_path: Path, make: Callable[[Path], Path], told: str) -> None:
    before = {p.name: p.read_bytes() for p in made.iterdir() if p.is_file()}
    with pytest.raises(Fault, match=told) as caught:
        sign(made, key=make(tmp_path))
    assert caught.value.exit is Exit.BAD_INPUT and caught.value.code == "bad-key"
    assert {p.name: p.read_bytes() for p in made.iterdir() if p.is_file()} == before


def test_a_changed_artifact_is_not_signed(made: Path, keys: dict[str, tuple[Path, Path]]) -> None:
    (made / "report.md").write_text("better than it is")
    with pytest.raises(Fault, match=r"report\.md") as caught:
        sign(made, key=keys["p256"][0])
    assert caught.value.exit is Exit.BAD_INPUT and not (made / "model.sig").exists()


def test_attestations_follow_their_schemas(made: Path, keys: dict[str, tuple[Path, Path]]) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    sign(made, key=keys["p256"][0])
    text = (made / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    component = json.loads(text)["metadata"]["component"]
    metrics = {m["type"]: m["value"] for m in component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["top1"] == "0.9" and component["licenses"] == [{"license": {"name": "MIT"}}]
    properties = {p["name"]: p["value"] for p in component["properties"]}
    assert properties["lathe:data:confirm"] == "cd" * 32 and "quantize-static" in properties["lathe:recipe"]

    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2

    statement = json.loads((made / "provenance.json").read_text())
    json_format.ParseDict(statement, statement_pb2.Statement())
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    manifest = json.loads((made / "manifest.json").read_text())
    assert subjects["model.onnx"] == manifest["files"]["model.onnx"]["sha256"]
    assert set(statement["predicate"]) == {"buildDefinition", "runDetails"}


def test_the_script_in_the_artifact_checks_it_too(made: Path, keys: dict[str, tuple[Path, Path]]) -> None:
    sign(made, key=keys["p384"][0])
    command = [sys.executable, str(made / "verify.py"), "--no-latency", "--require-signature", "--key"]
    for name, code in (("p384", 0), ("p256", 1)):
        done = subprocess.run([*command, str(keys[name][1])], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
    shutil.rmtree(made / "golden")
    assert subprocess.run([*command, str(keys["p384"][1])], capture_output=True, check=False).returncode == 1
