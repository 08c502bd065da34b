from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from proxy.errors import ConfigError
from proxy.upstream.tls import tls_context


def test_a_ca_file_that_holds_no_certificate_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "broken.pem"
    for content in ("", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"contentsquare\.ca_file"):
            tls_context(path)
    with pytest.raises(ConfigError, match=r"contentsquare\.ca_file"):
        tls_context(tmp_path / "missing.pem")


def test_the_context_verifies_and_speaks_tls_1_2_at_least() -> None:
    context = tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
