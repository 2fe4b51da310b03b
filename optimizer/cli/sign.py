"""``lathe sign``: a signature over every file of an artifact."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.boundary import emit
from optimizer.cli.common import OUTPUT, api, option, verb

FILE = click.Path(path_type=Path)
KEY = "Key and certificate"


@verb("sign", short_help="Sign an artifact, with its provenance and bill of materials.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@option(
    "--key",
    section=KEY,
    type=FILE,
    required=True,
    metavar="PEM",
    help="Private key of the curve P-256, P-384 or P-521.",
)
@option("--certificate", section=KEY, type=FILE, metavar="PEM", help="Certificate of that key.")
@option("--chain", section=KEY, type=FILE, multiple=True, metavar="PEM", help="Who signed the certificate. Repeatable.")
@option("--overwrite", section=OUTPUT, is_flag=True, help="Replace a signature that is there.")
def command(
    folder: Path, key: Path, certificate: Path | None, chain: tuple[Path, ...], overwrite: bool, as_json: bool
) -> None:
    """Sign the artifact in DIR with OpenSSF model-signing, offline.

    Beside model.sig, which covers every file, it gets provenance.json (in-toto, SLSA) and bom.cdx.json (CycloneDX).
    """
    place = api().sign(folder, key=key, certificate=certificate, chain=chain, overwrite=overwrite)
    if as_json:
        from optimizer.report.json_ import dump

        emit(dump({"folder": str(folder), "signature": "model.sig"}, "lathe.sign/1"))
    else:
        emit(str(place / "model.sig"))
