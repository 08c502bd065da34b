"""Programs that have ``https://api.contentsquare.com`` built in, unmodified, by ``snippets --for hosts``.

Their hosts file leads this name to the proxy. Needs root on Linux, and openssl.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import STARTUP_S, write
from support.demo import JOB
from support.snippets import settings_of, text

pytestmark = pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or not all(map(shutil.which, ("unshare", "ip", "openssl", "setpriv")))
    or subprocess.run(["unshare", "--mount", "--net", "true"], check=False).returncode != 0,
    reason="makes namespaces",
)
PYTHON_PROGRAM = """
import json, sys, time, urllib.request
secret, client_id, project_id, job = sys.argv[1:]
def call(path, members=None, token=None):
    fields = {"Content-Type": "application/json"} | ({"Authorization": "Bearer " + token} if token else {})
    data = None if members is None else json.dumps(members).encode()
    request = urllib.request.Request("https://api.contentsquare.com" + path, data, fields)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
asked = {"client_id": client_id, "client_secret": secret, "grant_type": "client_credentials"}
asked |= {"scope": "data-export", "project_id": int(project_id)}
token = call("/v1/oauth/token", asked)["access_token"]
export = call("/v1/exports", json.loads(job), token)["payload"]["jobId"]
[run] = call(f"/v1/exports/{export}/runs", None, token)["payload"]
while not (files := call(f"/v1/exports/{export}/runs/{run['jobRunId']}", None, token)["payload"]["files"]):
    time.sleep(0.1)
with urllib.request.urlopen(files[0]["url"], timeout=30) as file:
    print(json.dumps({"url": files[0]["url"], "bytes": len(file.read())}))
"""
NODE_PROGRAM = """
const [secret, client_id, , job] = process.argv.slice(1);
const call = async (path, token, members) => {
  const headers = { "Content-Type": "application/json", ...(token && { Authorization: "Bearer " + token }) };
  const method = members ? "POST" : "GET";
  const answer = await fetch("https://api.contentsquare.com" + path, { method, headers, body: members });
  if (!answer.ok) throw new Error(path + " " + answer.status + " " + (await answer.text()));
  return answer.json();
};
(async () => {
  const asked = { client_id, client_secret: secret, grant_type: "client_credentials", scope: "data-export" };
  const { access_token } = await call("/v1/oauth/token", "", JSON.stringify(asked));
  const { jobId } = (await call("/v1/exports", access_token, job)).payload;
  const [{ jobRunId }] = (await call(`/v1/exports/${jobId}/runs`, access_token)).payload;
  for (;;) {
    const { files } = (await call(`/v1/exports/${jobId}/runs/${jobRunId}`, access_token)).payload;
    if (files.length) {
      const file = await (await fetch(files[0].url)).arrayBuffer();
      return console.log(JSON.stringify({ url: files[0].url, bytes: file.byteLength }));
    }
    await new Promise((done) => setTimeout(done, 100));
  }
})();
"""
INSIDE = """
import json, pathlib, subprocess, sys
commands = json.load(sys.stdin)
proxy = [sys.executable, "-m", "proxy"]
sandbox = subprocess.Popen([*proxy, "sandbox"], stdout=subprocess.PIPE, text=True)
gateway = None
try:
    lines = []
    while not (line := sandbox.stdout.readline()).startswith("# To practise"):
        assert line
        lines.append(line)
    server = pathlib.Path("server.toml").read_text()
    config = pathlib.Path("config.toml")
    config.touch(mode=0o600)
    config.write_text(server + "".join(lines))
    serve = [*proxy, "serve", "--config", "config.toml"]
    gateway = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True)
    while '"listening"' not in (line := gateway.stderr.readline()):
        assert line
    ran = [subprocess.run(command, check=False, capture_output=True, text=True) for command in commands]
    print(json.dumps([[one.returncode, one.stdout, one.stderr] for one in ran]))
finally:
    for process in filter(None, (gateway, sandbox)):
        process.kill()
        process.wait()
"""


def made_by_the_text(folder: Path) -> str:
    """Run the snippet's commands for the certificate; returns its script that runs the program."""
    snippet = text("hosts", settings_of())
    commands = [
        line for line in snippet.splitlines() if line.startswith(("openssl ", "printf 'sub", "chmod "))
    ]
    assert len(commands) == 6
    subprocess.run(
        ["sh", "-ec", "\n".join(commands)], cwd=folder, check=True, timeout=STARTUP_S, capture_output=True
    )
    shown = re.search(r"^# 2\..*?(\[server\].*?)^#\n", snippet.replace("#    ", ""), re.DOTALL | re.MULTILINE)
    assert shown is not None
    server = shown[1].partition("In a container")[0].replace("#", "")
    for place, name in (("cert", "cert.pem"), ("key", "key.pem"), ("caller", "caller-key")):
        server = server.replace(f"/run/secrets/csq-proxy-{place}", str(folder / name))
    (folder / "server.toml").write_text(server)
    return snippet.partition("--- run-my-program.sh\n")[2]


def test_each_program_gets_the_data_of_its_own_project(tmp_path: Path, environ: dict[str, str]) -> None:
    script = made_by_the_text(tmp_path)
    assert script.count("my-program") == 1
    write(tmp_path / "run.sh", script.replace("my-program", '"$@"'))
    secret, job = (tmp_path / "caller-key").read_text().strip(), json.dumps(JOB)
    programs = [["env", "SSL_CERT_FILE=ca.pem", sys.executable, "-c", PYTHON_PROGRAM]]
    if shutil.which("node") is not None:
        programs.append(["env", "NODE_EXTRA_CA_CERTS=ca.pem", "node", "-e", NODE_PROGRAM])
    commands, expected = [], []
    for program in programs:
        for name, number in (("demo-eu", "42"), ("demo-us", "43")):
            commands.append(["sh", "run.sh", *program, secret, name, number, job])
            expected.append(number)
    ran = subprocess.run(
        [
            "unshare",
            "--mount",
            "--net",
            "sh",
            "-c",
            'ip link set lo up && exec "$0" -c "$1"',
            sys.executable,
            INSIDE,
        ],
        cwd=tmp_path,
        env=environ,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=2 * STARTUP_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for (code, output, errors), number in zip(json.loads(ran.stdout), expected, strict=True):
        assert code == 0, errors
        told = json.loads(output)
        assert f"/exports/{number}/" in told["url"]
        assert told["bytes"] > 0
