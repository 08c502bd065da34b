"""A hatchling build hook: ``CSQ_PROXY_COMPILE=1`` has mypyc compile the modules on a request's way.

The compiled modules need less than half of the CPU time. The wheel then fits one platform and one version of
Python, and the build needs a C compiler. The modules are compiled in a temporary folder, so that no extension
module stays beside the sources and goes stale; an editable install is never compiled.
``CSQ_PROXY_COMPILE_FOR=aarch64`` makes the wheel for Linux on that machine, by a ``CC`` that compiles for it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = (
    "contentsquare.py",
    "gateway",
    "http1",
    "logs",
    "projects/measures.py",
    "projects/recent.py",
    "projects/shared_answers.py",
    "projects/stored.py",
    "projects/usage.py",
    "server",
    "upstream",
)
"""Files below ``proxy``, and folders with every module in them: a request passes through these."""
NOT_COMPILED = (
    "__init__.py",
    "gateway/exports/",  # the time of these modules is little beside that of a file
    "gateway/oauth.py",  # its class of errors assigns three attributes at once
    "gateway/outward.py",  # it is used at a start and at a reload alone
    "logs/background.py",  # Windows alone uses it
    "logs/file.py",  # it is used once for the lines of a turn
    "logs/terminal.py",  # a person reads these lines
    "server/listeners.py",  # it is used at the start alone
    "server/site.py",  # its classes derive from aiohttp's
    "server/unix_socket.py",  # it is used once a second
    "upstream/dial.py",  # tests put a slow dialer in its place, which no compiled class allows
    "upstream/loop.py",  # tests let it ask another machine for its addresses
)
"""Files that stay source, and folders of them, with the reason."""
SETUP = """
from mypyc.build import mypycify
from setuptools import setup

# The same result everywhere: libraries are left unknown, though some may be there, and what is not compiled
# is read for its types alone. CI checks the types.
arguments = ["--config-file=", "--python-version={version}", "--ignore-missing-imports"]
arguments += ["--no-site-packages", "--follow-imports=silent"]
modules = mypycify([*arguments, *{sources}], opt_level="3", debug_level="0")
setup(name="csq-proxy", packages=[], ext_modules=modules)
"""


class CompiledHook(BuildHookInterface[Any]):
    """The hook, which hatchling finds by its base class."""

    PLUGIN_NAME = "custom"

    @property
    def _is_wanted(self) -> bool:
        return os.environ.get("CSQ_PROXY_COMPILE") == "1" and self.target_name == "wheel"

    def dependencies(self) -> list[str]:
        """The packages that the build environment needs beside hatchling."""
        return ["mypy>=1.20", "setuptools>=77"] if self._is_wanted else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the extension modules beside their sources in the wheel."""
        if not self._is_wanted or version == "editable":
            return
        self._folder = TemporaryDirectory()
        folder = Path(self._folder.name)
        build_data["pure_python"] = False
        machine = os.environ.get("CSQ_PROXY_COMPILE_FOR", "")
        if machine:
            python = "cp{}{}".format(*sys.version_info)
            build_data["tag"] = f"{python}-{python}-linux_{machine}"
        else:
            build_data["infer_tag"] = True
        for path in compiled(Path(self.root), folder, machine):
            build_data["force_include"][str(path)] = str(path.relative_to(folder))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Delete the temporary folder, once the wheel is written."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def compiled(root: Path, folder: Path, machine: str) -> list[Path]:
    """Compile the sources of ``root`` in ``folder``; return the extension modules, or exit on failure.

    ``machine`` is the kind of machine that they are for; empty for this one.
    """
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    environ = dict(os.environ)
    if machine:
        suffix = suffix.replace(platform.machine(), machine)
        environ.update(_PYTHON_HOST_PLATFORM=f"linux-{machine}", SETUPTOOLS_EXT_SUFFIX=suffix)
    shutil.copytree(root / "proxy", folder / "proxy")
    sources = [str(path.relative_to(folder)) for path in _sources(folder / "proxy")]
    version = "{}.{}".format(*sys.version_info)
    (folder / "setup.py").write_text(SETUP.format(sources=sources, version=version))
    made = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if made.returncode:
        sys.exit(
            f"The modules can't be compiled; leave CSQ_PROXY_COMPILE out for a wheel without.\n{made.stdout}"
        )
    return [*folder.glob(f"*{suffix}"), *folder.glob(f"proxy/**/*{suffix}")]


def _sources(package: Path) -> Iterator[Path]:
    for entry in COMPILED:
        path = package / entry
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            name = source.relative_to(package).as_posix()
            if not any(part in name for part in NOT_COMPILED):
                yield source
