"""``csq-proxy stop``: ends the running proxy as its configuration allows, and waits for its end.

A signal is sent only to a process that holds the proxy's listening socket: a process id alone, which any
program can tell, may be another process's. Linux alone tells which process holds a socket, and tells it of a
TCP socket to root alone, since the proxy shuts its /proc entries (`proxy.process.harden`). For another user
the socket must be of that user, and the process a csq-proxy: then the program behind the socket could send
this signal itself.
Sources: proc(5), unix(7) (SO_PEERCRED: the process that called listen), pidfd_open(2), ps(1); Microsoft's
"OpenProcess" and "WaitForSingleObject".
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from proxy.cli.console import fail, say
from proxy.cli.running_proxy import TIMEOUT_S, RunningProxy, Unreachable
from proxy.origin import is_loopback
from proxy.server.request import UNIX

if sys.platform != "win32":
    from proxy.config.trust import user_name

GRACE_S = 5.0
"""How long the end may take in addition to ``drain_timeout``."""
EVERY_S = 0.1
_DRAIN_TIMEOUT_S = 30.0
"""For a proxy that doesn't tell its own."""
_LISTENS = "0A"
_SYNCHRONIZE = 0x00100000
_MANAGERS = {
    "win32": "Stop-Service csq-proxy or schtasks /End /TN csq-proxy",
    "darwin": "launchctl bootout gui/$UID/csq-proxy",
}
_WAYS = (
    "set server.allow_quit = true, press Ctrl-C where it runs,"
    f" or use its service manager, as {_MANAGERS.get(sys.platform, 'systemctl stop csq-proxy')}"
)


def stop(place: RunningProxy) -> None:
    """Stop the proxy and wait for its end; exits with 1 where it can't be stopped, or doesn't end in time."""
    limit_s = _DRAIN_TIMEOUT_S + GRACE_S
    try:
        status = place.status()
        with _held_by(place, status.get("pid")) as process:
            _ask(place, process, status.get("pid"))
            limit_s = float(status.get("drain_timeout_s", _DRAIN_TIMEOUT_S)) + GRACE_S
            has_ended = _has_ended(place, process, status.get("pid"), limit_s)
    except Unreachable as error:
        if not _drains(place.url):
            fail((str(error),), 1)
        has_ended = _until(lambda: not _drains(place.url), limit_s)
    except OSError as error:  # of the signal
        fail((f"{place.url}: it can't be stopped from here ({error.strerror}): {_WAYS}",), 1)
    if not has_ended:
        fail((f"{place.url}: has not ended within {limit_s:g} s",), 1)
    say("Stopped.")


def _ask(place: RunningProxy, process: int | None, pid: Any) -> None:
    """Have the proxy stop. Raises Unreachable, OSError of the signal, and SystemExit where it may not be."""
    answer = place.call("POST", "/-/quit")
    if answer.status == 202:
        return
    if answer.status == 403:
        told = answer.json()
        fail((f"{place.url}: {told['errorMessage'] if isinstance(told, dict) else 'refused'}",), 1)
    if answer.status not in (404, 405):  # which say that server.allow_quit is false
        raise place.refused(answer)
    if process is None:
        fail((f"{place.url}: it can't be stopped from here{_reason(place.url, pid)}: {_WAYS}",), 1)
    signal.pidfd_send_signal(process, signal.SIGTERM)


def _has_ended(place: RunningProxy, process: int | None, pid: Any, limit_s: float) -> bool:
    """Whether the process ends in time; an unknown one has if it doesn't answer, and has left its number."""
    if process is not None:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(limit_s * 1000))

    def has_left() -> bool:
        try:
            place.call("GET", "/-/healthy", timeout_s=TIMEOUT_S)
        except Unreachable:
            return not (_is_number(pid) and _is_here(place.url) and _lives(pid))
        return False

    return _until(has_left, limit_s)


def _until(is_over: Callable[[], bool], limit_s: float) -> bool:
    """Wait; whether it is over in time."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if is_over():
            return True
        time.sleep(EVERY_S)
    return False


def _drains(url: str) -> bool:
    """Whether a program of ours listens at this port no more, and has connections there, as in a stop.

    Linux alone tells that, and of TCP. A socket that no process holds has the number 0.
    """
    if not is_loopback(urlsplit(url).hostname or ""):
        return False
    states = {one[3] for one in _sockets(_port(url)) if one[7] == str(os.getuid()) and one[9] != "0"}
    return bool(states) and _LISTENS not in states


def _is_number(pid: Any) -> bool:
    """Whether this can be the number of a process that isn't the first one, as it is in a container."""
    return isinstance(pid, int) and not isinstance(pid, bool) and pid > 1


def _is_here(url: str) -> bool:
    return url.startswith(UNIX) or is_loopback(urlsplit(url).hostname or "")


def _lives(pid: int) -> bool:
    """Whether a process of ours has this number."""
    if sys.platform == "win32":  # where os.kill() ends the process
        import _winapi  # noqa: PLC0415 - Windows alone

        try:
            handle = _winapi.OpenProcess(_SYNCHRONIZE, False, pid)
        except OSError:
            return False
        try:
            return _winapi.WaitForSingleObject(handle, 0) == _winapi.WAIT_TIMEOUT
        finally:
            _winapi.CloseHandle(handle)
    try:
        shown = subprocess.run(  # noqa: S603 - a number
            ["/bin/ps", "-o", "uid=,stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout.split()
    except OSError:  # it isn't there
        return False
    return shown[:1] == [str(os.getuid())] and not shown[-1].startswith("Z")  # it has ended, too


@contextlib.contextmanager
def _held_by(place: RunningProxy, pid: Any) -> Iterator[int | None]:
    """A descriptor for the process ``pid``, if it is ours and holds the proxy's socket; else None."""
    descriptor = None
    can_look = sys.platform == "linux" and hasattr(os, "pidfd_open")  # Python may be built without it
    if can_look and _is_number(pid):
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)  # first: later the number may be another process's
    try:
        holds = False
        if descriptor is not None:
            with contextlib.suppress(OSError, ValueError):
                holds = _is_ours(pid) and _holds(place.url, pid)
        yield descriptor if holds else None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _reason(url: str, pid: Any) -> str:
    """The reason if it is known: a key for some projects, a container, another user's process; else ""."""
    if pid is None:
        return ", as this key is for some projects alone (--key-file gives another one)"
    if pid == 1 and pid is not True:
        return ", as it is the first process of a container (docker stop, kubectl delete pod)"
    if sys.platform == "linux" and _is_number(pid) and _is_here(url):
        with contextlib.suppress(OSError):
            if not _is_ours(pid) and (users := _users_of(pid)):
                return f", as process {pid} is of the user {user_name(users[0])}"
    return ""


def _is_ours(pid: int) -> bool:
    """Whether the process runs as our user, by its real and effective id. Raises OSError."""
    return _users_of(pid) == [os.getuid()] * 2


def _users_of(pid: int) -> list[int]:
    """The real and effective user ids of the process. Raises OSError."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((list(map(int, line.split()[1:3])) for line in lines if line.startswith("Uid:")), [])


def _holds(url: str, pid: int) -> bool:
    """Whether the process holds the socket that listens at the URL, on this computer. Raises OSError."""
    if url.startswith(UNIX):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(url.removeprefix(UNIX))
            holder, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return bool(holder == pid)
    port = _port(url)
    with socket.create_connection((urlsplit(url).hostname or "", port), TIMEOUT_S) as sock:
        there, here = (ipaddress.ip_address(name[0]) for name in (sock.getpeername(), sock.getsockname()))
    if not there.is_loopback and there != here:
        return False
    wanted = _listening(there, port)
    held = set()
    try:
        for one in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                held.add(str(one.readlink()))
    except PermissionError:
        arguments = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
        names = [Path(one).name for one in arguments]  # a release has csq-proxy-linux-x86_64
        is_proxy = any(name == "proxy" or name.startswith("csq-proxy") for name in names)
        return is_proxy and set(wanted.values()) == {str(os.getuid())}
    return bool(wanted) and wanted.keys() <= held


def _listening(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> dict[str, str]:
    """The sockets that listen at the address, else those at every address: links as in /proc, and users."""
    exact, every = {}, {}
    for fields in _sockets(port):
        if fields[3] != _LISTENS:
            continue
        words = struct.iter_unpack("!I", bytes.fromhex(fields[1].partition(":")[0]))
        found = ipaddress.ip_address(b"".join(struct.pack("=I", word) for (word,) in words))
        if found == address:
            exact[f"socket:[{fields[9]}]"] = fields[7]
        elif found.is_unspecified:
            every[f"socket:[{fields[9]}]"] = fields[7]
    return exact or every


def _sockets(port: int) -> Iterator[list[str]]:
    """The sockets at this port of this computer: the fields of their lines in ``/proc/net/tcp``."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/self/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if int(fields[1].partition(":")[2], 16) == port:
                    yield fields


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)
