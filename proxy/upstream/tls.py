"""The TLS settings of connections to the clouds."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

from proxy.errors import ConfigError


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
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=str(ca_file))
        except (OSError, ssl.SSLError):
            raise ConfigError(
                f"contentsquare.ca_file: {ca_file} can't be read as PEM certificates;"
                " export your company's CA as PEM"
            ) from None
    return context
