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

from proxy.machine import hidden_fault, is_timeout, machine_fault, passes

CAUSES = {
    errno.EMFILE: "no_descriptors",
    errno.ENFILE: "no_descriptors",
    errno.ENOMEM: "no_memory",
    errno.ENOBUFS: "no_memory",
    errno.EADDRNOTAVAIL: "no_port",
    errno.ENETUNREACH: "no_network",
    errno.EHOSTUNREACH: "no_network",
    errno.ENETDOWN: "no_network",
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
    assert errno.errorcode[code].removeprefix("WSA") in fault.words  # which Windows puts before some


class WindowsError(OSError):
    """An error of Windows' event loop: an OSError of no other class, with a number of Windows' own."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.EINVAL, "The words are in the user's language")
        self.winerror = number

    def __str__(self) -> str:
        return f"[WinError {self.winerror}] {self.strerror}"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (52, "no_port"),
        (1231, "no_network"),
        (1232, "no_network"),
        (1450, "no_memory"),
        (64, None),
        (121, None),
    ],
)
def test_the_numbers_of_windows_event_loop_are_known(number: int, said: str | None) -> None:
    error = WindowsError(number)
    assert cause(error) == cause(aiohttp.ClientConnectorError(KEY, error)) == said
    assert cause(OSError(f"Multiple exceptions: {error}, {error}")) == said
    assert cause(OSError(f"Multiple exceptions: {error}, [WinError 1225] refused")) is None


def test_an_end_by_the_system_s_time_limit_is_told_from_others() -> None:
    assert is_timeout(TimeoutError(errno.ETIMEDOUT, "x"))
    assert is_timeout(WindowsError(121))  # "The semaphore timeout period has expired"
    assert not is_timeout(WindowsError(64))
    assert not is_timeout(ConnectionResetError())


def test_the_error_of_the_family_that_this_computer_has_counts() -> None:
    assert cause(several(errno.ENETUNREACH, errno.EPERM)) == "forbidden"
    assert cause(several(errno.EADDRNOTAVAIL, errno.ECONNREFUSED)) is None
    assert cause(several(errno.ENOMEM, errno.ECONNREFUSED)) is None
    assert cause(OSError("Multiple exceptions: [WinError 1231] a, [WinError 10013] b")) == "forbidden"


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
