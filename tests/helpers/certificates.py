"""An authority, a server and a client certificate for 127.0.0.1 and localhost, made for one test run."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificates:
    """PEM files. `other_*` are of an authority that nobody trusts."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    other_ca: Path
    other_client: Path
    other_client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Write the files into the folder."""
    pytest.importorskip("cryptography")
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("", "other_"):
        _authority(folder, prefix)
    names = [field for field in Certificates.__dataclass_fields__ if field != ""]
    return Certificates(**{name: folder / f"{name}.pem" for name in names})


def _authority(folder: Path, prefix: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server", "client")}
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{prefix}test authority")])
    names = x509.SubjectAlternativeName([
        x509.DNSName("localhost"), x509.DNSName("models.localhost"),  # a bucket in the host's name
        x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    for name, key in keys.items():
        subject = issuer if name == "ca" else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
                   .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
                   .not_valid_after(now + datetime.timedelta(days=1))
                   .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
                   .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                   .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["ca"].public_key()),
                                  critical=False))
        if name == "ca":
            builder = builder.add_extension(
                x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
                              key_encipherment=False, data_encipherment=False, key_agreement=False,
                              encipher_only=False, decipher_only=False), critical=True)
        else:
            builder = builder.add_extension(names, critical=False)
        made = builder.sign(keys["ca"], hashes.SHA256())
        (folder / f"{prefix}{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        (folder / f"{prefix}{name}_key.pem").write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
