"""Tells the service manager how we are: ready, reloading, stopping (systemd's ``Type=notify``).

Hides the datagram socket and its abstract names; does nothing where nobody asked for it, as on other
systems. Never fails and never waits. Sources: sd_notify(3), unix(7).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


def ready() -> None:
    """Requests are answered, and the configuration is the one that was last asked for."""
    _send("READY=1")


def reloading() -> None:
    """A reload has begun; `ready` says that it has ended, whichever way."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """No more requests are taken."""
    _send("STOPPING=1")


def _send(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(address)
        sender.send(state.encode())
