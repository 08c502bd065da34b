"""The whole program on a machine whose hosts file leads Contentsquare's name to it. Needs root on Linux."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from support.commands import STARTUP_S, write

from proxy.upstream.loop import HOSTS_FILE

MACHINE = """
mount --bind hosts /etc/hosts && ip link set lo up || exit 77
exec "$0" -c "$1"
"""
"""A network and a file system of its own: port 443 is free there, and /etc/hosts is another one."""
INSIDE = """
import http.client, json, ssl, subprocess, sys, time
program = [sys.executable, "-m", "proxy"]
proxy = subprocess.Popen([*program, "serve", "--config", "config.toml"], stderr=subprocess.PIPE, text=True)
try:
    while '"listening"' not in (line := proxy.stderr.readline()):
        assert line
    began, context = time.monotonic(), ssl.create_default_context(cafile="ca.pem")
    answers = []
    for method, path in (("GET", "/v1/metrics/x"), ("POST", "/v1/oauth/me")):
        caller = http.client.HTTPSConnection("api.contentsquare.com", context=context, timeout=60)
        caller.request(method, path, body=None if method == "GET" else "{}")
        answer = caller.getresponse()
        answers.append([answer.status, json.loads(answer.read())])
    took_s = time.monotonic() - began
    check = subprocess.run(
        [*program, "check", "--live", "--json", "--config", "config.toml"], check=False, capture_output=True
    )
    print(json.dumps({"answers": answers, "took_s": took_s, "check": json.loads(check.stdout)}))
finally:
    proxy.kill()
    proxy.wait()
"""


def has_namespaces() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("ip")):
        return False
    return subprocess.run(["unshare", "--mount", "--net", "true"], check=False).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="makes namespaces")
@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "untrusted"])
def test_the_answer_and_the_check_name_the_hosts_file(
    trusted: bool, tmp_path: Path, environ: dict[str, str]
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("api.contentsquare.com")
    write(tmp_path / "key.pem", issued.private_key_pem.bytes().decode())
    write(tmp_path / "cert.pem", "".join(blob.bytes().decode() for blob in issued.cert_chain_pems))
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n127.0.0.1 api.contentsquare.com\n")
    write(
        tmp_path / "config.toml",
        f"""
[server]
host = "127.0.0.1"
port = 443
tls_cert = "cert.pem"
tls_key = "key.pem"
allowed_hosts = ["api.contentsquare.com"]
[contentsquare]
{'ca_file = "ca.pem"' if trusted else ""}
[projects.shop]
client_id = "id-1"
client_secret = "secret-1"
apis = ["metrics"]
""",
    )
    machine = ["unshare", "--mount", "--net", "sh", "-c", MACHINE, sys.executable, INSIDE]
    ran = subprocess.run(
        machine, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=2 * STARTUP_S, check=False
    )
    if ran.returncode == 77:
        pytest.skip("no other hosts file can be mounted here")
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    for status, members in seen["answers"]:
        assert (status, members["errorCode"]) == (502, "PROXY_LOOP")
        assert HOSTS_FILE in members["errorMessage"]
    assert seen["took_s"] < 10  # some hundredths; it was 40 s
    [finding] = [one for one in seen["check"]["checks"] if one["result"] != "ok"]
    assert finding["check"] == "loop"
    assert HOSTS_FILE in finding["message"]
