"""A hatchling build hook: compiles the path of a request, where ``CSQ_PROXY_COMPILE=1`` asks for it.

The same modules, made extension modules by mypyc: less than half of their CPU time for a wheel that fits
one platform and one Python. It takes a C compiler. Compiled in a folder of its own, so that nothing lies
beside the sources that could go stale; an editable install is never compiled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = (
    "contentsquare",
    "gateway/attempt",
    "gateway/callers",
    "gateway/exchange",
    "gateway/gateway",
    "gateway/guard",
    "gateway/policy",
    "gateway/request_log",
    "gateway/rewrite",
    "gateway/route",
    "gateway/sharing/cache_rules",
    "gateway/sharing/recording",
    "gateway/sharing/sharing",
    "http1/chunked",
    "http1/fields",
    "http1/heads",
    "http1/parser",
    "logs/quick_log",
    "logs/redact",
    "logs/sink",
    "projects/measures",
    "projects/shared_answers",
    "projects/stored",
    "server/body",
    "server/parser",
    "server/request",
    "server/request_id",
    "upstream/connection",
    "upstream/parser",
    "upstream/pool",
)
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
    """What hatchling finds here."""

    PLUGIN_NAME = "custom"

    @property
    def _is_wanted(self) -> bool:
        return os.environ.get("CSQ_PROXY_COMPILE") == "1" and self.target_name == "wheel"

    def dependencies(self) -> list[str]:
        """What the build environment needs, beside hatchling."""
        return ["mypy>=1.20", "setuptools>=77"] if self._is_wanted else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the extension modules beside their sources, within the wheel."""
        if not self._is_wanted or version == "editable":
            return
        self._folder = TemporaryDirectory()
        folder = Path(self._folder.name)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for path in compiled(Path(self.root), folder):
            build_data["force_include"][str(path)] = str(path.relative_to(folder))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Throw away what was compiled, once it is in the wheel."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def compiled(root: Path, folder: Path) -> list[Path]:
    """The extension modules of the sources in ``root``, made in ``folder``."""
    shutil.copytree(root / "proxy", folder / "proxy")
    sources = [f"proxy/{module}.py" for module in MODULES]
    version = "{}.{}".format(*sys.version_info)
    (folder / "setup.py").write_text(SETUP.format(sources=sources, version=version))
    made = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if made.returncode:
        sys.exit(
            f"The modules can't be compiled; leave CSQ_PROXY_COMPILE out for a wheel without.\n{made.stdout}"
        )
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return [*folder.glob(f"*{suffix}"), *folder.glob(f"proxy/**/*{suffix}")]
