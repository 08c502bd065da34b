"""What `.ci/build` and the workflows make: how a program of one file begins, and the names that they use."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FROZEN = ROOT / ".ci/frozen.py"
if not FROZEN.exists():  # under Wine
    pytest.skip("the scripts of .ci are not here", allow_module_level=True)
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def in_frozen(code: str) -> str:
    """What ``code`` prints where ``frozen`` has the functions that a program of one file begins with."""
    begin = f"import os, runpy, ssl; frozen = runpy.run_path({str(FROZEN)!r}, run_name='frozen')\n"
    ended = subprocess.run([sys.executable, "-c", begin + code], check=True, capture_output=True, text=True)
    return ended.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="the variable is POSIX's")
@pytest.mark.parametrize(("before", "after"), [(None, "None"), ("", ""), ("/opt/lib", "/opt/lib")])
def test_commands_of_a_program_of_one_file_get_the_libraries_of_the_system(
    before: str | None, after: str
) -> None:
    code = "os.environ['LD_LIBRARY_PATH'] = '/tmp/_MEI1'\n"
    if before is not None:
        code += f"os.environ['LD_LIBRARY_PATH_ORIG'] = {before!r}\n"
    code += "frozen['give_back_the_libraries'](); print(os.environ.get('LD_LIBRARY_PATH'))"
    assert in_frozen(code) == after


@pytest.mark.skipif(sys.platform != "linux", reason="the other systems have a store of their own")
@pytest.mark.parametrize("usual", [True, False])
def test_a_program_of_one_file_finds_the_certificates_of_other_systems(tmp_path: Path, usual: bool) -> None:
    """The OpenSSL in it has the places of the system that built it."""
    bundle = tmp_path / "bundle.crt"
    bundle.touch()
    code = f"""
paths = ssl.DefaultVerifyPaths({str(bundle)!r} if {usual} else None, None, "", "", "", "")
ssl.get_default_verify_paths = lambda: paths
os.environ.pop("SSL_CERT_FILE", None)
frozen["find_certificates"].__globals__["CERTIFICATES"] = ("/nowhere/at/all", {str(bundle)!r})
frozen["find_certificates"]()
print(os.environ.get("SSL_CERT_FILE"))
"""
    assert in_frozen(code) == ("None" if usual else str(bundle))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_workflows_call_scripts_parts_and_settings_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "permissions" in yaml.safe_load(text)
    for script in re.findall(r"\.ci/[\w.-]+[\w]", text):
        assert (ROOT / script).exists(), script
    build = (ROOT / ".ci/build").read_text(encoding="utf-8")
    parts = re.findall(r"parts: ([a-z_ ]+)", text) + re.findall(r"\.ci/build ([a-z_ ]+?)(?: &&|$)", text)
    for part in " ".join(parts).split():
        assert f"\n{part}() {{\n" in build, part
    tests = (ROOT / ".ci/windows-tests").read_text(encoding="utf-8").split()
    assert all((ROOT / one).exists() for one in tests)


def test_the_wheels_of_a_release_are_compiled_and_started() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    assert settings["environment"] == {"CSQ_PROXY_COMPILE": "1"}
    assert ".ci/smoke.py" in settings["test-command"]
