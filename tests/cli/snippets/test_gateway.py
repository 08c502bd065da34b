"""The text for several replicas: its configurations, and that balancers send a project to one replica."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Container
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import kubernetes_validate
import pytest
import yaml
from support.balancers import FILES, adapted, balancer, check_command, parts, program, trusting
from support.commands import STARTUP_S, write
from support.harness import WAIT_S, Message, RawServer
from support.snippets import FULL, KEY, PROJECT, executed, served, settings_of, text

from proxy.cli.snippets.gateway import MONITOR
from proxy.config.load import load
from proxy.config.settings import Settings

one_loop = pytest.mark.asyncio(loop_factories=["asyncio"])
"""For other programs, whose start is slow."""
BALANCERS = [
    pytest.param(kind, marks=pytest.mark.skipif(program(kind) is None, reason=f"no {kind} here"))
    for kind in FILES
]
NAMED = settings_of(
    projects={"shop-fr": {**PROJECT, "default": True}, **{f"shop-{n}": PROJECT for n in range(20)}},
    accounts={
        name: {"client_id": "id", "client_secret": "canary-3"}
        for name in ("acme", "acme-2", *(f"account-{n}" for n in range(300)))
    },
)
SAME = {
    "shop-fr": [
        ("/shop-fr/v1/segments?a=/shop-1/", ""),
        ("/-/exports/shop-fr/7/latest.csv", ""),
        ("/-/exports/shop-fr/8/latest.jsonl.gz?run=/9/10", ""),
        ("/-/refresh/shop-fr", ""),
        ("/v1/segments", ""),
        ("/v1", "shop-fr"),
        ("/v1/segments?x=1", "shop-fr"),
        ("/shop-fr?x=1", ""),
    ],
    "shop-1": [("/shop-1/v1/segments", ""), ("/v1/segments", "shop-1"), ("/shop-1/v1/x", "shop-fr")],
    "acme/42": [
        ("/acme/42/v1/segments", ""),
        ("/-/exports/acme/42/7/latest.csv", ""),
        ("/-/refresh/acme/42", ""),
        ("/v1/segments", "acme/42"),
    ],
    "acme-2/42": [
        ("/acme-2/42/v1/segments?x=/7/8/9", ""),
        ("/-/exports/acme-2/42/7/latest.csv?run=/8/9", ""),
        ("/acme-2/42?x=1", ""),
        ("/v1/segments", "acme-2/42"),
    ],
    "the page": [("/-/", ""), ("/-/status", ""), ("/-/requests?project=shop-1", "")],
}


def resources(settings: Settings) -> dict[str, Any]:
    shown = parts(text("gateway", settings))["kubernetes.yaml"]
    return {f"{one['kind']} {one['metadata']['name']}": one for one in yaml.safe_load_all(shown)}


def replica(settings: Settings, folder: Path) -> Settings:
    """The settings of a replica."""
    config = resources(settings)["ConfigMap csq-proxy"]["data"]["config.toml"]
    for name in re.findall(r'"/run/secrets/csq-proxy/([^"]+)"', config):
        write(folder / name, "secret-of-" + name)
    return load(None, tomllib.loads(config.replace("/run/secrets/csq-proxy", str(folder))), {}, search=False)


@pytest.mark.parametrize("settings", [settings_of(), FULL], ids=["small", "full"])
def test_the_resources_fit_the_schemas(settings: Settings) -> None:
    found = resources(settings)
    monitor = found.pop("ServiceMonitor csq-proxy")  # of the Prometheus Operator, not of Kubernetes
    for resource in found.values():
        kubernetes_validate.validate(resource, "1.31", strict=True)
    port = str(settings.server.port)
    pod = found["StatefulSet csq-proxy"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > settings.server.drain_timeout
    [container] = pod["containers"]
    assert container["env"][1]["value"].endswith("$(POD_IP):" + port)
    assert str(found["Service csq-proxy"]["spec"]["ports"][0]["port"]) == port
    for name, kind in (("csq-proxy", "StatefulSet"), ("csq-proxy-balancer", "Deployment")):
        budget = found[f"PodDisruptionBudget {name}"]["spec"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"] == found[f"{kind} {name}"]["spec"]["selector"]
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["port"] == found["Service csq-proxy"]["spec"]["ports"][0]["name"]
    assert monitor["spec"]["selector"]["matchLabels"] == found["Service csq-proxy"]["metadata"]["labels"]
    assert endpoint["authorization"]["credentials"]["key"] == f"caller_{MONITOR}"


@pytest.mark.parametrize("settings", [settings_of(), FULL], ids=["small", "full"])
def test_a_replica_needs_keys_and_fetches_tokens_on_first_use(settings: Settings, tmp_path: Path) -> None:
    ours = replica(settings, tmp_path)
    assert ours.callers[MONITOR].read_only
    assert len(ours.callers) > 1
    assert ours.server.host == "0.0.0.0"
    assert ours.server.public_url == "https://csq-proxy.example.com"
    assert not any(project.port for project in ours.projects.values())
    assert {project.apis for project in ours.projects.values()} == {
        ()
    }  # one project can't make all not ready
    names = re.findall(r"--from-file=(\w[\w.-]*)", text("gateway", settings))
    assert set(names) - {"tls.pem", "haproxy.cfg"} == {
        *(f"caller_{name}" for name in ours.callers),
        *ours.projects,
        *ours.accounts,
        *(f"{name}.standby" for name, project in ours.projects.items() if project.standby),
    }


def test_the_public_url_and_its_port_are_the_configured_ones() -> None:
    public = settings_of(server={"public_url": "https://csq.corp:8443"}, callers={"bi": {"key": KEY}})
    found = resources(public)
    assert 'public_url = "https://csq.corp:8443"' in found["ConfigMap csq-proxy"]["data"]["config.toml"]
    assert found["Service csq-proxy-balancer"]["spec"]["ports"][0]["port"] == 8443


@one_loop
async def test_the_probes_work(tmp_path: Path) -> None:
    async with served(with_callers=True) as settings:
        found = resources(settings)
        config = found["ConfigMap csq-proxy"]["data"]["config.toml"]
        write(tmp_path / "config.toml", config)
        [container] = found["StatefulSet csq-proxy"]["spec"]["template"]["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            _, *arguments = container[probe]["exec"]["command"]
            there = [
                argument.replace("/run/secrets/csq-proxy/", "./").replace("/etc/csq-proxy/", "./")
                for argument in arguments
            ]
            command = (sys.executable, "-m", "proxy", *there)
            await executed(tmp_path, *command, file=f"caller_{MONITOR}", content=KEY)


@pytest.mark.parametrize("kind", BALANCERS)
@pytest.mark.parametrize("settings", [settings_of(), FULL, NAMED], ids=["small", "full", "many"])
def test_the_balancer_accepts_its_configuration(kind: str, settings: Settings, tmp_path: Path) -> None:
    trusting(tmp_path)
    shown = parts(text("gateway", settings))[FILES[kind]]
    path = adapted(kind, shown, tmp_path, (8443, 9001, 9002, 9003), KEY)
    ended = subprocess.run(
        check_command(kind, path),
        env={**os.environ, "CSQ_MONITOR_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=STARTUP_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@asynccontextmanager
async def replicas(
    seen: list[tuple[int, Message]], *, failing: Container[int] = (), starting: Container[int] = ()
) -> AsyncIterator[list[int]]:
    """Three servers that note their number and each request but the checks; their ports.

    Those in ``failing`` end the connection in place of an answer, and those in ``starting`` are not ready.
    """

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = Message((await reader.readuntil(b"\r\n\r\n"))[:-4])
            status = 200
            if b" /-/ready " in request.start_line:
                status = 503 if number in starting else 200
            elif number in failing:
                return
            else:
                seen.append((number, request))
            writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: 2\r\n\r\nok" % status)

    async with AsyncExitStack() as stack:
        ports = []
        for number in range(3):
            server = RawServer(functools.partial(serve, number))
            ports.append((await stack.enter_async_context(server)).port)
        yield ports


def patient(shown: str) -> str:
    """A balancer's configuration with checks that have time on a slow machine, too."""
    shown = shown.replace(" inter 1s", " inter 60s").replace("interval: 1s", "interval: 60s")
    return shown.replace("- timeout: 1s", "- timeout: 60s")


@one_loop
@pytest.mark.parametrize("kind", BALANCERS)
async def test_the_balancer_sends_a_project_to_one_replica(kind: str, tmp_path: Path) -> None:
    seen: list[tuple[int, Message]] = []
    shown = parts(text("gateway", NAMED))[FILES[kind]]
    async with (
        replicas(seen) as ports,
        balancer(kind, patient(shown), tmp_path, ports, KEY) as (port, context),
        aiohttp.ClientSession(f"https://localhost:{port}") as session,
    ):

        async def get(path: str, name: str = "") -> tuple[int, Message]:
            fields = {"X-CSQ-Project": name} if name else {}
            async with asyncio.timeout(WAIT_S):
                while True:  # Envoy waits for its first checks
                    async with session.get(path, headers=fields, ssl=context) as answer:
                        if answer.status == 200:
                            return seen[-1]
                    await asyncio.sleep(0.02)

        async with asyncio.timeout(WAIT_S):  # each replica has its share, once Envoy's first checks are made
            while {(await get(f"/shop-{n}/v1/segments"))[0] for n in range(60)} != {0, 1, 2}:
                await asyncio.sleep(0.02)
        for what, ways in SAME.items():
            assert len({(await get(path, name))[0] for path, name in ways}) == 1, what
        assert len({(await get(f"/acme/{n}/v1/segments"))[0] for n in range(20)}) > 1
        await get("/shop-1/v1/segments?csq_key=canary-of-a-query")
        log = tmp_path / f"{kind}.log"
        assert "canary" not in log.read_text()
        # What the caller sent, and nothing else: it would reach Contentsquare.
        _, request = await get("/shop-1/v1/a%2Fb//c?x=%20")
        assert request.start_line == b"GET /shop-1/v1/a%2Fb//c?x=%20 HTTP/1.1"
        assert request.values(b"host") == [b"localhost:%d" % port]
        names = {line.partition(b":")[0].lower() for line in request.lines}
        assert names <= {b"host", b"accept", b"accept-encoding", b"user-agent", b"connection"}


@one_loop
@pytest.mark.parametrize("kind", BALANCERS)
async def test_a_replica_that_was_not_ready_at_the_balancer_s_start_is_used_once_it_is(
    kind: str, tmp_path: Path
) -> None:
    starting = {0, 1, 2}
    shown = parts(text("gateway", NAMED))[FILES[kind]]
    async with (
        replicas([], starting=starting) as ports,
        balancer(kind, shown, tmp_path, ports, KEY) as (port, context),
        aiohttp.ClientSession(f"https://localhost:{port}") as session,
    ):

        async def status() -> int:
            async with session.get("/shop-1/v1/segments", ssl=context) as answer:
                return answer.status

        async with asyncio.timeout(WAIT_S):
            while kind != "nginx" and await status() != 503:
                await asyncio.sleep(0.02)
            starting.clear()
            while await status() != 200:
                await asyncio.sleep(0.02)


@one_loop
@pytest.mark.parametrize("kind", BALANCERS)
async def test_a_get_that_a_replica_leaves_without_an_answer_goes_to_another(
    kind: str, tmp_path: Path
) -> None:
    failing: set[int] = set()
    seen: list[tuple[int, Message]] = []
    shown = parts(text("gateway", NAMED))[FILES[kind]]
    async with (
        replicas(seen, failing=failing) as ports,
        balancer(kind, patient(shown), tmp_path, ports, KEY) as (port, context),
        aiohttp.ClientSession(f"https://localhost:{port}") as session,
    ):

        async def get(name: str) -> int:
            async with session.get(f"/{name}/v1/segments", ssl=context) as answer:
                return answer.status

        async with asyncio.timeout(WAIT_S):
            while {number for number, _ in seen} != {0, 1, 2}:  # Envoy waits for its first checks
                await asyncio.gather(*(get(f"shop-{n}") for n in range(60)))
        failing.add(1)
        names = [f"shop-{n}" for n in range(400)]
        statuses = [await get(name) for name in names]
        assert [name for name, status in zip(names, statuses, strict=True) if status != 200] == []
