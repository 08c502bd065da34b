"""The verdict on a cloud's certificate: the same on every Python and whichever store the CA is in."""

from __future__ import annotations

import errno
import os
import ssl
from pathlib import Path

import pytest
from support.certificates import CASES, openssl_verifies
from support.clouds import closing, exchange, pool_of, refusal
from support.harness import WAIT_S, RawServer, Upstream

from proxy.errors import ConfigError
from proxy.upstream.dial import Dialer
from proxy.upstream.tls import certificate_fault, tls_context


def test_a_ca_file_that_holds_no_certificate_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "broken.pem"
    for content in ("", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"contentsquare\.ca_file"):
            tls_context(path)
    with pytest.raises(ConfigError, match=rf"contentsquare\.ca_file: .*{os.strerror(errno.ENOENT)}"):
        tls_context(tmp_path / "missing.pem")


def test_the_context_verifies_and_speaks_tls_1_2_at_least() -> None:
    context = tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@openssl_verifies
@pytest.mark.parametrize("name", CASES)
async def test_every_python_comes_to_the_same_verdict_and_the_message_names_the_fault(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    ca_file = case.ca_file(tmp_path)
    using = Dialer(tls_context(ca_file), connect_timeout_s=WAIT_S, ca_file=ca_file)
    async with (
        RawServer(Upstream(), tls=case.server_side(tmp_path)) as server,
        closing(pool_of(f"https://localhost:{server.port}", using)) as pool,
    ):
        if not case.fault:
            assert (await exchange(await pool.connect())).content == b"ok"
            return
        error = await refusal(pool)
    assert error.proxy_status == "tls_certificate_error"
    assert case.fault in str(error)
    assert "contentsquare.ca_file" not in str(error)


def test_a_fault_that_the_operating_system_names_is_told_with_ca_file() -> None:
    error = ssl.SSLCertVerificationError("x")
    error.verify_code, error.verify_message = 0x800B0109, "A certificate chain ended in an untrusted root."
    assert certificate_fault(error, None).startswith("A certificate chain ended in an untrusted root; behind")
    assert "set contentsquare.ca_file" not in certificate_fault(error, Path("company.pem"))
