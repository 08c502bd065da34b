"""OAuth libraries that others wrote, unmodified: from the token to its endpoint to an answer, in the sandbox.

Each runs at the bare URL, at a project's prefix and at an account's, with callers and without.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import pytest
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from oauthlib.oauth2 import BackendApplicationClient
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session
from support.commands import STARTUP_S
from support.demo import sandboxed
from support.harness import WAIT_S

from proxy.gateway.placeholder import placeholder

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # it is about the programs
KEY = "caller-key-12345"
SCOPES = "metrics data-export"
PATHS = ["/v1/segments", "/v1/exportable-fields"]
Case = tuple[str, Mapping[str, str]]
"""A base URL, and parameters for the token request beside the usual ones."""
Answers = tuple[Mapping[str, Any], list[str]]
"""A token answer, and the texts of two answers with its token."""


def requests_oauthlib(way: str, base: str, extra: Mapping[str, str]) -> Answers:
    client = BackendApplicationClient(client_id="placeholder", scope=SCOPES.split())
    with OAuth2Session(client=client) as session:
        auth: dict[str, Any] = (
            {"auth": HTTPBasicAuth("placeholder", KEY)}
            if way == "header"
            else {"client_secret": KEY, "include_client_id": True}
        )
        token = session.fetch_token(f"{base}/v1/oauth/token", timeout=WAIT_S, **auth, **extra)
        calls = [session.get(token["endpoint"] + path, timeout=WAIT_S) for path in PATHS]
        assert [call.status_code for call in calls] == [200, 200]
        return token, [f"{call.headers} {call.text}" for call in calls]


def authlib(way: str, base: str, extra: Mapping[str, str]) -> Answers:
    method = "client_secret_basic" if way == "header" else "client_secret_post"
    session = AuthlibSession("placeholder", KEY, scope=SCOPES, token_endpoint_auth_method=method)
    with session:
        token = session.fetch_token(
            f"{base}/v1/oauth/token", grant_type="client_credentials", timeout=WAIT_S, **extra
        )
        calls = [session.get(token["endpoint"] + path, timeout=WAIT_S) for path in PATHS]
        assert [call.status_code for call in calls] == [200, 200]
        return token, [f"{call.headers} {call.text}" for call in calls]


SIMPLE_OAUTH2 = """
const { ClientCredentials } = require("simple-oauth2");
const { way, cases, scope, secret, paths } = JSON.parse(process.argv[1]);
const run = async ([base, extra]) => {
  const [, origin, prefix] = base.match(/^(https?:..[^/]+)(.*)$/);
  const client = new ClientCredentials({
    client: { id: "placeholder", secret },
    auth: { tokenHost: origin, tokenPath: `${prefix}/v1/oauth/token` },
    options: {
      authorizationMethod: way === "header" ? "header" : "body",
      bodyFormat: way === "json" ? "json" : "form",
    },
  });
  const { token } = await client.getToken({ scope, ...extra });
  const answers = [];
  for (const path of paths) {
    const headers = { Authorization: `${token.token_type} ${token.access_token}` };
    const answer = await fetch(token.endpoint + path, { headers });
    if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
    answers.push(JSON.stringify([...answer.headers]) + (await answer.text()));
  }
  return [token, answers];
};
(async () => console.log(JSON.stringify(await Promise.all(cases.map(run)))))();
"""


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", "-e", *arguments],
        capture_output=True,
        timeout=STARTUP_S,
        env={**os.environ, "NO_PROXY": "*"},
        text=True,
        check=False,
    )


@functools.cache
def has_simple_oauth2() -> bool:
    return shutil.which("node") is not None and not node("require.resolve('simple-oauth2')").returncode


def simple_oauth2(way: str, cases: Sequence[Case]) -> list[Answers]:
    if not has_simple_oauth2():
        pytest.skip("no Node.js with simple-oauth2 here")
    asked = {"way": way, "cases": cases, "scope": SCOPES, "secret": KEY, "paths": PATHS}
    ended = node(SIMPLE_OAUTH2, json.dumps(asked))
    assert ended.returncode == 0, ended.stderr
    return [(token, answers) for token, answers in json.loads(ended.stdout)]


def curl(way: str, base: str, extra: Mapping[str, str]) -> Answers:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")

    def run(*arguments: str) -> str:
        ended = subprocess.run(
            ["curl", "-sS", "-f", "--noproxy", "*", *arguments],
            capture_output=True,
            timeout=STARTUP_S,
            check=True,
            text=True,
        )
        return ended.stdout

    asked = {"grant_type": "client_credentials", "scope": SCOPES, **extra}
    whole = {**asked, "client_id": "any", "client_secret": KEY}
    content = {
        "json": ["-H", "Content-Type: application/json", "-d", json.dumps(whole)],
        "form": ["-d", urlencode(whole)],
        "header": ["-u", f"any:{KEY}", "-d", urlencode(asked)],
    }[way]
    token = json.loads(run(*content, f"{base}/v1/oauth/token"))
    bearer = f"Authorization: Bearer {token['access_token']}"
    answers = [run("-i", "-H", bearer, token["endpoint"] + path) for path in PATHS]
    assert "metrics" in run(*content, f"{base}/v1/oauth/me")
    return token, answers


@pytest.mark.parametrize("with_callers", [False, True])
@pytest.mark.parametrize(
    ("program", "way"),
    [
        (requests_oauthlib, "form"),
        (requests_oauthlib, "header"),
        (authlib, "form"),
        (authlib, "header"),
        (simple_oauth2, "json"),
        (simple_oauth2, "form"),
        (simple_oauth2, "header"),
        (curl, "json"),
        (curl, "form"),
        (curl, "header"),
    ],
)
async def test_a_program_gets_from_the_token_to_its_endpoint_to_an_answer(
    program: Callable[..., Any],
    way: str,
    with_callers: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")
    monkeypatch.setenv("NO_PROXY", "*")
    callers = {"callers": {"tool": {"key": KEY}}} if with_callers else {}
    key = KEY if with_callers else None
    async with sandboxed(**callers) as (url, number, secrets):
        with_id = {"project_id": str(number)}
        cases: dict[str, Case] = {
            "": (url, {}),
            "/shop": (f"{url}/shop", {}),
            "/shop#id": (url, with_id),
            f"/acme/{number}": (f"{url}/acme/{number}", {}),
            f"/acme/{number}#id": (f"{url}/acme", with_id),
        }
        if program is simple_oauth2:
            answers = await asyncio.to_thread(program, way, list(cases.values()))
        else:
            answers = [await asyncio.to_thread(program, way, *case) for case in cases.values()]
        for name, (token, texts) in zip(cases, answers, strict=True):
            prefix = name.partition("#")[0]
            assert token["access_token"] == placeholder(prefix[1:] or "shop", key)
            assert token["endpoint"] == url + prefix
            assert token["project_id"] == number
            assert not [secret for secret in secrets if secret in json.dumps(token) + "".join(texts)]
