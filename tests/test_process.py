"""`proxy.process`: what the process asks of the operating system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from proxy import process
from proxy.process import command_line, own_command, windows_line

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


@pytest.mark.parametrize(
    ("words", "in_powershell", "in_cmd"),
    [
        (["csq-proxy", "check", "--live"], "csq-proxy check --live", None),
        ([r".\csq-proxy.exe", "serve"], r".\csq-proxy.exe serve", None),
        (
            [r"C:\My Tools\python.exe", "-m", "proxy", "--config", r"C:\R&D (FR)\a.toml"],
            r'& "C:\My Tools\python.exe" -m proxy --config "C:\R&D (FR)\a.toml"',
            r'"C:\My Tools\python.exe" -m proxy --config "C:\R&D (FR)\a.toml"',
        ),
        (["csq-proxy", "C:/O'Brien/a,b.toml"], """csq-proxy "C:/O'Brien/a,b.toml\"""", None),
        (
            ["csq-proxy", "\\\\server\\share$\\Jos\u00e9\\"],
            'csq-proxy "\\\\server\\share`$\\Jos\u00e9\\\\"',
            'csq-proxy "\\\\server\\share$\\Jos\u00e9\\\\"',
        ),
        (["csq-proxy", ""], 'csq-proxy ""', None),
    ],
)
def test_a_command_line_of_windows_can_be_pasted_into_its_shells(
    words: list[str], in_powershell: str, in_cmd: str | None
) -> None:
    assert windows_line(words, is_cmd=False) == in_powershell
    assert windows_line(words, is_cmd=True) == (in_cmd or in_powershell)


def test_a_command_line_is_one_of_this_system_s_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT", "$P$G")  # as in cmd.exe
    assert command_line(["a b", "c"]) == ('"a b" c' if sys.platform == "win32" else "'a b' c")
