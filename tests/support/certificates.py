"""Certificates: with one fault each or odd ones, for the verdicts on them, and a listener's."""

from __future__ import annotations

import datetime as dt
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    import trustme

_DAY = dt.timedelta(days=1)
_UNKNOWN, _OWN = "local issuer", "self-signed"


@dataclass(frozen=True)
class Signed:
    """A certificate and its key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class Case:
    """What a server shows, what its client's ``ca_file`` holds, and a word of OpenSSL's for the fault.

    ``fault`` "": the certificate is good.
    """

    chain: tuple[Signed, ...]
    trusted: Signed
    fault: str = ""

    @property
    def has_unknown_issuer(self) -> bool:
        return self.fault in (_UNKNOWN, _OWN)

    def server_side(self, folder: Path) -> ssl.SSLContext:
        shown = folder / "shown.pem"
        key = self.chain[0].key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        shown.write_bytes(key + b"".join(one.pem for one in self.chain))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(shown)
        return context

    def ca_file(self, folder: Path) -> Path:
        path = folder / "company.pem"
        path.write_bytes(self.trusted.pem)
        return path


def signed(
    name: str,
    issuer: Signed | None = None,
    *,
    ca: bool | None = None,
    critical: bool = True,
    identifiers: bool = True,
    hosts: tuple[str, ...] = (),
    usage: x509.ObjectIdentifier | None = None,
    days: tuple[int, int] = (-1, 30),
) -> Signed:
    """A certificate of ``issuer``, None: of itself.

    ``ca`` None leaves basicConstraints out; ``identifiers`` are the key identifiers of subject and issuer;
    ``days`` are the first and last day, counted from today.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    signer = key if issuer is None else issuer.key
    subject = _named(name)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * _DAY)
        .not_valid_after(now + days[1] * _DAY)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=critical)
    if hosts:
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if identifiers:
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        ).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    return Signed(key, builder.sign(signer, hashes.SHA256()))


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _leaf(issuer: Signed, *, hosts: tuple[str, ...] = ("localhost",), **extra: object) -> Signed:
    return signed("localhost", issuer, hosts=hosts, **extra)  # type: ignore[arg-type]


def _cases() -> dict[str, Case]:
    """Each case by its name."""
    root = signed("Company CA", ca=True)
    between = signed("Company issuing CA", root, ca=True)
    loose = signed("Old company CA", ca=True, critical=False)
    bare = signed("Older company CA", ca=True, critical=False, identifiers=False)
    ended = signed("Ended company CA", ca=True, days=(-9, -2))
    no_ca = signed("No CA", root, ca=False)
    alone = signed("localhost", hosts=("localhost",))
    return {
        "good": Case((_leaf(root),), root),
        "good, through an intermediate CA": Case((_leaf(between), between), root),
        "basicConstraints not critical": Case((_leaf(loose),), loose),
        "leaf without key identifiers": Case((_leaf(root, identifiers=False),), root),
        "no key identifiers at all": Case((_leaf(bare, identifiers=False),), bare),
        "an intermediate CA alone is trusted": Case((_leaf(between), between), between),
        "self-signed, and trusted": Case((alone,), alone),
        "expired": Case((_leaf(root, days=(-9, -2)),), root, "has expired"),
        "not yet valid": Case((_leaf(root, days=(2, 9)),), root, "not yet valid"),
        "another name": Case((_leaf(root, hosts=("other.example",)),), root, "not valid for 'localhost'"),
        "no name but the common name": Case((_leaf(root, hosts=()),), root),
        "unknown CA": Case((_leaf(signed("Stranger", ca=True)),), root, _UNKNOWN),
        "self-signed": Case((signed("localhost", hosts=("localhost",)),), root, _OWN),
        "another CA of the same name": Case((_leaf(signed("Company CA", ca=True)),), root, _UNKNOWN),
        "the intermediate CA is not sent": Case((_leaf(between),), root, _UNKNOWN),
        "issuer that is no CA": Case((_leaf(no_ca), no_ca), root, "invalid CA"),
        "issuer that has expired": Case((_leaf(ended),), ended, "has expired"),
        "for clients alone": Case((_leaf(root, usage=ExtendedKeyUsageOID.CLIENT_AUTH),), root, "purpose"),
    }


CASES = _cases()
openssl_verifies = pytest.mark.skipif(
    sys.platform in ("win32", "darwin"),
    reason="the operating system verifies there",
)


def tls_files(folder: Path, issued: trustme.LeafCert) -> dict[str, str]:
    """Write ``cert.pem`` and ``key.pem`` into the folder; returns the settings of a listener with them."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    key.touch(mode=0o600)
    issued.private_key_pem.write_to_path(str(key))
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return {"tls_cert": str(cert), "tls_key": str(key)}
