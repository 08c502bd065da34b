"""This machine's address towards the clouds, which can change: then all open connections die in silence.

Needs a network namespace of its own (root, on Linux). The clouds listen at `CLOUDS_HOST`; the kernel's route
to it names the source address of new connections. After a change no packet passes between the clouds
and the address before, as after a change of VPN or Wi-Fi: there is no FIN and no RST.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

CLOUDS_HOST = "127.0.0.9"
_INSIDE = "CSQ_CHAOS_NAMESPACE"


def enter_namespace() -> bool:
    """Run this program again in a namespace of its own, or, there, say that addresses can change.

    Without the means it returns False, and the addresses stay.
    """
    if os.environ.get(_INSIDE):
        for change in ("link set lo up", "rule add pref 100 lookup local", "rule del pref 0"):
            _ip(change)
        return True
    possible = (
        sys.platform == "linux" and os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip")
    )
    if possible and subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0:
        os.environ[_INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    return False


def change_address(number: int) -> None:
    """Connections to the clouds come from 127.0.1.``number`` (1 to 254) from now on."""
    _ip(f"route replace local {CLOUDS_HOST} dev lo table local src 127.0.1.{number}")
    if number > 1:
        for direction in ("from", "to"):
            _ip(f"rule add pref 10 {direction} 127.0.1.{number - 1} blackhole")


def _ip(change: str) -> None:
    subprocess.run(["ip", *change.split()], check=True)
