"""Signing an artifact: OpenSSF model-signing over every file, after provenance and bill of materials were added.

Offline, with a key or with a certificate; the receiver's side stands in :mod:`optimizer.package.receiver.signature`.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimizer.faults import Fault, bad_input, cannot, usage
from optimizer.package import attest
from optimizer.package.artifact import BOM, PROVENANCE, appearing, write_sums, write_text
from optimizer.package.formats.base import open_artifact
from optimizer.package.manifest import to_text
from optimizer.package.receiver.words import SIGNATURE, SUMS

NEEDED = ("model_signing", "cyclonedx", "OpenSSL")
INSTALL = "pip install 'lathe[sign]'"


def sign(
    folder: Path, *, key: Path, certificate: Path | None = None, chain: Sequence[Path] = (), overwrite: bool = False
) -> Path:
    """Write provenance, bill of materials and a signature over every file into the artifact in ``folder``.

    ``key`` is an elliptic-curve private key (PEM, P-256, P-384 or P-521); with ``certificate`` the signature carries
    that certificate and its ``chain`` instead of a hint at the key. ``overwrite`` replaces a signature that is there.
    Everything is made in a copy that takes the artifact's place at the end. Raises
    :class:`~optimizer.faults.Fault`: bad input for an artifact that is not as it was shipped or a key of another kind,
    environment when a package is missing, usage when it is signed already.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise cannot(f"signing needs {missing[0]}, which is not installed", hint=INSTALL, code="missing-package")
    signer = _signer(key, certificate, chain)
    opened = open_artifact(folder)
    if (opened.folder / SIGNATURE).exists() and not overwrite:
        raise usage("this is signed already", where=str(folder), hint="Add --overwrite.", code="output-exists")
    with appearing(folder, overwrite=True) as partial:
        shutil.copytree(opened.folder, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SIGNATURE))
        for name, tree in ((PROVENANCE, attest.provenance(opened)), (BOM, attest.bill_of_materials(opened))):
            _replace(partial / name, to_text(tree))
        files = {p.relative_to(partial).as_posix() for p in partial.rglob("*") if p.is_file()}
        (partial / SUMS).unlink()
        write_sums(partial, sorted(files - {SUMS}))
        _write_signature(signer, partial)
    return opened.folder


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    write_text(path, text)


def _signer(key: Path, certificate: Path | None, chain: Sequence[Path]) -> Any:
    """model-signing's configuration for this key. Raises a bad-input fault that says what is wrong with it."""
    import model_signing

    _check_key(key)
    config: Any = model_signing.signing.Config()
    try:
        if certificate is None:
            return config.use_elliptic_key_signer(private_key=key)
        return config.use_certificate_signer(
            private_key=key, signing_certificate=certificate, certificate_chain=list(chain)
        )
    except (OSError, ValueError, TypeError) as error:
        where = key if certificate is None else certificate
        raise _bad_key(where, " ".join(str(error).split())[:200]) from error


def _check_key(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        text = path.read_bytes()
    except OSError as error:
        raise bad_input("the key cannot be read", where=str(path), code="bad-key") from error
    kind = text.partition(b"-----BEGIN ")[2].partition(b"-----")[0].decode("ascii", "replace").lower()
    if "private key" not in kind:
        raise _bad_key(
            path,
            f"this is {'an' if kind[0] in 'aeio' else 'a'} {kind}, not a private key"
            if kind
            else "this is not a PEM private key",
        )
    try:
        found = load_pem_private_key(text, None)
    except TypeError as error:
        raise _bad_key(path, "the key is encrypted: write it without a password into a file of yours") from error
    except ValueError as error:
        raise _bad_key(path, "the key is damaged") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey) or found.curve.name not in (
        "secp256r1",
        "secp384r1",
        "secp521r1",
    ):
        raise _bad_key(path, "the key is of another kind: it must be of the curve P-256, P-384 or P-521")


def _bad_key(path: Path, message: str) -> Fault:
    hint = "openssl ecparam -name prime256v1 -genkey -noout -out private.pem makes one."
    return bad_input(message, where=str(path), hint=hint, code="bad-key")


def _write_signature(signer: Any, folder: Path) -> None:
    import model_signing

    plain: Any = model_signing.hashing.Config()
    plain.set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)
    signer.set_hashing_config(plain).sign(folder, folder / SIGNATURE)
