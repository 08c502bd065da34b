"""`proxy.process`: what the process asks of the operating system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from proxy import process
from proxy.process import own_command

LOOK = """
import resource, ctypes
from proxy import process
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
process.harden()
process.raise_descriptor_limit()
print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256)
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_there_are_no_core_dumps_no_attaching_and_enough_descriptors() -> None:
    found = subprocess.run([sys.executable, "-c", LOOK], check=True, capture_output=True, text=True).stdout
    assert found.splitlines() == ["(0, 0) True", "0"]


def test_the_program_knows_the_words_that_start_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_command() == [sys.executable, "-m", "proxy"]
    ended = subprocess.run([*own_command(), "--version"], check=True, capture_output=True, text=True)
    assert ended.stdout.startswith("csq-proxy ")
    monkeypatch.setattr(sys, "argv", ["dist/csq-proxy.pyz"])
    assert own_command() == [sys.executable, str(Path("dist/csq-proxy.pyz").absolute())]
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert own_command() == [sys.executable]


@pytest.mark.parametrize("scans", [2, 1_000_000])
def test_a_virus_scanner_that_has_a_file_open_is_waited_for(
    scans: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to replace such a file. No scanner has one open for long."""
    monkeypatch.setattr(process, "REPLACE_WAIT_S", 30.0 if scans == 2 else 0.1)
    new, old, replace = tmp_path / "new", tmp_path / "old", Path.replace
    new.write_bytes(b"new")
    tries = []

    def replaced(path: Path, target: Path) -> Path:
        tries.append(1)
        if len(tries) <= scans:
            raise PermissionError(13, "Access is denied")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replaced)
    if scans == 2:
        process.replace(new, old)
        assert (old.read_bytes(), len(tries)) == (b"new", 3)
    else:
        with pytest.raises(PermissionError):
            process.replace(new, old)
