"""The TLS settings of connections to the clouds, and the words for a certificate that is refused."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

from proxy.errors import ConfigError

NAME_MISMATCHES = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_DATES = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
"""OpenSSL's X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT and its like; the certificate may be self-signed, too."""
_MOST_OF_OPENSSL = 200
"""Greater than each of OpenSSL's codes; Windows and macOS have codes of their own, far from these."""


def tls_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """A verifying client context: the system's store (SSL_CERT_FILE honoured), and ``ca_file`` beside it.

    Raises ConfigError when ``ca_file`` holds no certificate.
    """
    context: ssl.SSLContext
    if sys.platform in ("win32", "darwin"):
        import truststore  # noqa: PLC0415 - the operating system's own verification, only where OpenSSL lacks it

        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    else:
        context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    verify_alike(context)
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=str(ca_file))
        except ssl.SSLError:
            raise ConfigError(
                f"contentsquare.ca_file: {ca_file} can't be read as PEM certificates;"
                " export your company's CA as PEM"
            ) from None
        except OSError as error:
            raise ConfigError(f"contentsquare.ca_file: can't read {ca_file}: {error.strerror}") from None
    return context


def verify_alike(context: ssl.SSLContext) -> None:
    """Have every Python come to the same verdict: Python 3.13 has changed the flags of its contexts.

    The chain, the dates, the purpose and the name are always verified. VERIFY_X509_STRICT would refuse the
    CAs of many companies (basicConstraints not critical, no key identifier). VERIFY_X509_PARTIAL_CHAIN lets
    a chain end at any certificate of the stores: some companies hand out an intermediate CA alone.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def certificate_fault(error: ssl.SSLCertVerificationError, ca_file: Path | None) -> str:
    """The fault of a certificate, and what to do; ``ca_file`` is the configured one, None where none is."""
    code, fault = error.verify_code, error.verify_message.rstrip(".")
    if code in NAME_MISMATCHES:
        return f"{fault}; check the name, and whether another server answers in its place"
    if code in _DATES:
        return f"{fault}; check this computer's date, else its owner must renew it"
    if 0 < code < _MOST_OF_OPENSSL and code not in _UNKNOWN_ISSUER:
        return fault
    if ca_file is None:
        return (
            f"{fault}; behind a company's TLS inspection export its CA as PEM and set contentsquare.ca_file"
        )
    return f"{fault}; the system's CAs and those in {ca_file} are trusted"
