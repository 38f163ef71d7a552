"""An authority of a cluster's own, made with openssl: for webhooks, and for what OpenShift's service CA signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_DAYS = "2"


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates.

    Args:
        folder: takes the files; made if it is not there.
        name: of the authority.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._count = folder, 0
        self.own = Certificate(folder / "ca.crt", folder / "ca.key")
        _openssl("req", "-x509", *_key(self.own.key), "-subj", f"/CN={name}", "-out", str(self.own.certificate),
                 "-addext", "keyUsage=critical,keyCertSign,digitalSignature")

    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self.own.certificate.read_bytes()

    def sign(self, *names: str) -> Certificate:
        """A certificate for these host names and addresses (`IP:127.0.0.1`)."""
        self._count += 1
        result = Certificate(self._folder / f"{self._count}.crt", self._folder / f"{self._count}.key")
        alternatives = ",".join(name if name.startswith("IP:") else f"DNS:{name}" for name in names)
        _openssl("req", "-x509", *_key(result.key), "-subj", f"/CN={names[0][:64]}", "-out", str(result.certificate),
                 "-CA", str(self.own.certificate), "-CAkey", str(self.own.key),
                 "-addext", f"subjectAltName={alternatives}", "-addext", "basicConstraints=critical,CA:FALSE")
        return result


def _key(file: Path) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", _DAYS,
            "-keyout", str(file))


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
