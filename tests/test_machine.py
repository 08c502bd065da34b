"""`proxy.machine`: failures of this computer itself, whatever a library makes of them."""

from __future__ import annotations

import errno
import os
import socket
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from support.descriptors import none_left

from proxy.machine import hidden_fault, machine_fault, passes

CAUSES = {
    errno.EMFILE: "no_descriptors",
    errno.ENFILE: "no_descriptors",
    errno.ENOMEM: "no_memory",
    errno.ENOBUFS: "no_memory",
    errno.EADDRNOTAVAIL: "no_port",
    errno.ENETUNREACH: "no_network",
    errno.EHOSTUNREACH: "no_network",
    errno.EPERM: "forbidden",
    errno.EACCES: "forbidden",
}
KEY = ConnectionKey("h", 443, True, True, None, None, None)


def cause(error: BaseException) -> str | None:
    fault = machine_fault(error)
    return None if fault is None else fault.cause


def several(*codes: int) -> OSError:
    """The error of attempts to several addresses, as aiohappyeyeballs makes it."""
    return OSError("Multiple exceptions: " + ", ".join(str(OSError(code, "failed")) for code in codes))


@pytest.mark.parametrize("code", CAUSES)
def test_a_fault_has_its_name_however_its_error_is_wrapped(code: int) -> None:
    error = OSError(code, os.strerror(code))
    hidden = ValueError("something else")
    hidden.__context__ = error
    for wrapped in (error, hidden, aiohttp.ClientConnectorError(KEY, error), several(code, code)):
        assert cause(wrapped) == CAUSES[code]
    fault = machine_fault(error)
    assert fault is not None
    assert errno.errorcode[code] in fault.words


def test_the_error_of_the_family_that_this_computer_has_counts() -> None:
    assert cause(several(errno.ENETUNREACH, errno.EPERM)) == "forbidden"
    assert cause(several(errno.EADDRNOTAVAIL, errno.ECONNREFUSED)) is None
    assert cause(several(errno.ENOMEM, errno.ECONNREFUSED)) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ECONNREFUSED, "refused"),
        OSError("no number"),
        ssl.SSLError(1, "1 is no EPERM"),
        ssl.SSLCertVerificationError(1, "nor here"),
        socket.gaierror(errno.ENOMEM, "of another kind"),
        aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(errno.EPERM, "of another kind")),
        aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "1 is no EPERM")),
    ],
)
def test_what_others_cause_is_no_fault_of_this_computer(error: Exception) -> None:
    assert cause(error) is None
    assert hidden_fault(error) is None
    assert not passes(error)


def test_no_memory_has_other_names_too() -> None:
    assert cause(MemoryError()) == "no_memory"
    assert cause(socket.gaierror(socket.EAI_MEMORY, "no memory")) == "no_memory"


def test_a_lack_of_descriptors_is_found_where_the_error_hides_it() -> None:
    error = socket.gaierror(socket.EAI_AGAIN, "try again")
    with none_left():
        fault, may_pass = hidden_fault(error), passes(error)
    assert fault is not None
    assert fault.cause == "no_descriptors"
    assert may_pass


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EISDIR])
def test_what_is_wrong_with_a_file_does_not_pass_by_itself(code: int) -> None:
    assert not passes(OSError(code, os.strerror(code)), (f"config.toml: can't read it: {os.strerror(code)}",))
