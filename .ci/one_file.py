"""Make a program of one file for this system, by an environment with csq-proxy and PyInstaller.

``python .ci/one_file.py FOLDER`` leaves ``csq-proxy`` (on Windows ``csq-proxy.exe``) there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PyInstaller.__main__ import run

with TemporaryDirectory(ignore_cleanup_errors=True) as work:
    options = ["--onefile", "--name=csq-proxy", "--collect-all=proxy", "--copy-metadata=csq-proxy", "--noupx"]
    options += ["--log-level=WARN", f"--workpath={work}", f"--specpath={work}", f"--distpath={sys.argv[1]}"]
    if sys.platform == "linux":
        options.append("--strip")
    run([*options, str(Path(__file__).with_name("frozen.py"))])
