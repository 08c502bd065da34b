"""Whether the process at the other end of a connection has left.

A FIN says only that nothing more will be sent: who closed its socket and who waits for an answer
look the same in TCP. On the same Linux host the kernel knows more: the other end's socket either
still belongs to a process or is an orphan. Knows nothing of HTTP.
Sources: sock_diag(7), netlink(7), poll(2).
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys

_SOCK_DIAG_BY_FAMILY = 20
_NETLINK_SOCK_DIAG = 4
_NLM_F_REQUEST = 1
_NLMSG = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")
_SOCKET_ID = struct.Struct("!HH16s16sI8s")
_NO_COOKIE = b"\xff" * 8
_INODE_OFFSET = _NLMSG.size + 4 + _SOCKET_ID.size + 16
_TIMEOUT_S = 0.05

Address = tuple[object, ...] | str | None


def has_left(fileno: int, own: Address, peer: Address) -> bool | None:
    """Whether the peer of a socket has left; None where this can't be told. Takes some microseconds.

    ``own`` and ``peer`` are the socket's two addresses, as `socket.socket.getsockname` gives them.
    """
    if sys.platform != "linux":
        return None
    if _is_reset(fileno):
        return True
    if not isinstance(own, tuple) or not isinstance(peer, tuple):
        return None
    host, port = str(peer[0]), int(str(peer[1]))
    if not (host.startswith("127.") or host == "::1"):
        return None
    with contextlib.suppress(OSError, struct.error):
        inode = _inode((host, port), (str(own[0]), int(str(own[1]))))
        return None if inode is None else inode == 0
    return None


def _is_reset(fileno: int) -> bool:
    poller = select.poll()
    poller.register(fileno, 0)  # POLLERR and POLLHUP are always reported
    return bool(poller.poll(0))


def _inode(source: tuple[str, int], destination: tuple[str, int]) -> int | None:
    """The inode of the TCP socket with these addresses, 0 for an orphan, None where there is none."""
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    ends = (socket.inet_pton(family, source[0]), socket.inet_pton(family, destination[0]))
    wanted = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
    wanted += _SOCKET_ID.pack(source[1], destination[1], *ends, 0, _NO_COOKIE)
    head = _NLMSG.pack(_NLMSG.size + len(wanted), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(getattr(socket, "AF_NETLINK"), socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as kernel:  # noqa: B009 - absent on Windows
        kernel.settimeout(_TIMEOUT_S)
        kernel.send(head + wanted)
        answer = kernel.recv(4096)
    if _NLMSG.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    inode: int = struct.unpack_from("=I", answer, _INODE_OFFSET)[0]
    return inode
