"""Start a csq-proxy that was built, ask it, stop it: ``python3 .ci/smoke.py COMMAND...``.

The command is run in an empty folder that is its home, too, so its first start unpacks what it must.
Prints the time of two starts, from the exec to the first answer. Ends with an error if something isn't as it
must be.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

PATHS = ("/-/ready", "/-/", "/-/page.js", "/-/metrics", "/demo-eu/v1/segments?projectId=42")
LIMIT_S = 300  # in QEMU or under Wine, on a busy machine
# A command gets the libraries of the system, not those that a program of one file brings.
SECRET = "import os; assert '_MEI' not in os.environ.get('LD_LIBRARY_PATH', ''); print('secret-12345')"


def main() -> None:
    command = [str(Path(shutil.which(sys.argv[1]) or sys.argv[1]).absolute()), *sys.argv[2:]]
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environ = {**os.environ, "CSQ_PROXY_SERVER__ALLOW_QUIT": "true"}  # for "stop"
        if sys.platform != "win32":
            environ["HOME"] = folder
        Path(folder, "config.toml").write_text(
            "[projects.shop]\nclient_id = 'id'\nclient_secret_command = "
            + json.dumps([sys.executable, "-c", SECRET]),
            encoding="utf-8",
        )

        def run(*arguments: str, **more: str) -> str:
            shown = Path(
                folder, "shown.txt"
            )  # Wine's desktop, which a first program starts, would hold a pipe open
            with shown.open("wb") as file:
                ended = subprocess.run(
                    [*command, *arguments],
                    cwd=folder,
                    env={**environ, **more},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=LIMIT_S,
                    check=False,
                )
            text = shown.read_text(encoding="utf-8")
            assert ended.returncode == 0, (arguments, ended, text)
            return text

        print(run("--version").strip())
        starts = [serve(command, folder, environ, run) for _ in range(2)]
        print(f"first answer after {starts[0]} ms, at a later start after {starts[1]} ms")
        for arguments in (("check",), ("snippets", "--for", "curl"), ("snippets", "--for", "systemd")):
            shown = run(*arguments)
            assert "shop" in shown, shown
            print(f"{' '.join(arguments)}: {len(shown.splitlines())} lines")


def serve(command: list[str], folder: str, environ: dict[str, str], run: Callable[..., str]) -> int:
    """Start the sandbox, ask for all paths, stop it; return the milliseconds to the first answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    began = time.perf_counter()
    proxy = subprocess.Popen(
        [*command, "serve", "--sandbox", "--port", port, "--log-format", "json"],
        cwd=folder,
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert proxy.stderr is not None
        url = next(line["urls"][0] for line in map(json.loads, proxy.stderr) if line["event"] == "listening")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        shown = []
        answered_after_s = []
        for path in PATHS:
            with opener.open(url + path, timeout=LIMIT_S) as answer:
                shown.append(f"{answer.status} {path} {len(answer.read())} bytes")
            answered_after_s.append(time.perf_counter() - began)
        run("health", CSQ_PROXY_SERVER__PORT=port)
        if sys.platform == "win32":
            run("stop", CSQ_PROXY_SERVER__PORT=port)
        else:
            proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(LIMIT_S) == 0, proxy.returncode
        events = [line["event"] for line in map(json.loads, proxy.stderr)]
        assert events[-1] == "stopped", events
    finally:
        proxy.kill()
    print("; ".join(shown))
    return round(answered_after_s[0] * 1000)


if __name__ == "__main__":
    main()
