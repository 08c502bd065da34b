"""Tells the service manager the state of the process: ready, reloading, stopping (systemd's ``Type=notify``).

Hides the datagram socket and its abstract names; does nothing where no service manager asks for it, as on
other systems. Never fails and never waits. Sources: sd_notify(3), unix(7).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


def ready() -> None:
    """Say that requests are answered, and that no reload is under way."""
    _send("READY=1")


def reloading() -> None:
    """Say that a reload has begun; `ready` says that it has ended, well or not."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Say that no new requests are accepted."""
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
