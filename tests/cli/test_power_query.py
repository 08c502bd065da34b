"""The proxy's errors and the snippets fit the rules of Power Query (Power BI, Excel).

Web.Contents tries again after 408, 429, 503, 504 and 509, up to three times, and waits for a Retry-After of
whole seconds, 120 at most. After 401 and 403 it asks the person for credentials, so the proxy uses these
only for a caller's key and rights, and never for trouble between itself and Contentsquare. Source:
learn.microsoft.com/power-query/handling-status-codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import json
from collections.abc import AsyncIterator, Callable

import pytest
from support.harness import (
    OK,
    WAIT_S,
    Gateway,
    TokenServer,
    Upstream,
    free_port,
    gateway,
    next_request,
    read_message,
)
from support.power_query import ended, evaluate, has_parser
from support.snippets import KEY, PROJECT, served, settings_of, text, with_and_without_callers

from proxy.errors import ProxyError
from proxy.tokens import LeaseKeeper

CROWDED = b'{"success": false, "errorMessage": "Too much", "errorCode": "CONCURRENT_API_CALL"}'
ASKS_FOR_CREDENTIALS = (401, 403, 407)
LONGEST_WAIT_S = 120

Case = Callable[[], contextlib.AbstractAsyncContextManager[Gateway]]


def answers(status: int, content: bytes = b"{}") -> bytes:
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(content)) + content


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_message(reader)
    await reader.read()


async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_message(reader)


async def taken(proxy: Gateway) -> None:
    """Start a request that is never answered, and wait until it has its slot."""
    _, writer = await proxy.connect()
    writer.write(proxy.request(b"GET /v1/first"))
    [project] = proxy.app.projects()
    async with asyncio.timeout(WAIT_S):
        while not project.slots.in_use:
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def full() -> AsyncIterator[Gateway]:
    async with gateway(silence, contentsquare={"max_concurrency": 1, "queue_timeout": 0.05}) as proxy:
        await taken(proxy)
        yield proxy


@contextlib.asynccontextmanager
async def nowhere() -> AsyncIterator[Gateway]:
    url = f"http://127.0.0.1:{free_port()}"
    async with gateway(token=TokenServer(endpoint=url)) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def itself() -> AsyncIterator[Gateway]:
    port = free_port()
    token = TokenServer(endpoint=f"http://127.0.0.1:{port}")
    async with gateway(server={"port": port}, token=token) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def stopping() -> AsyncIterator[Gateway]:
    async with gateway() as proxy:
        proxy.app.overview.is_stopping = (
            True  # what follows closes the connections, sooner than one could ask
        )
        yield proxy


def token(status: int = 200, **extra: object) -> Case:
    return functools.partial(gateway, token=TokenServer(status=status, extra=extra))


def cloud(content: bytes, **contentsquare: float) -> Case:
    return functools.partial(gateway, Upstream(content), contentsquare=contentsquare)


TROUBLE: dict[str, tuple[str, Case]] = {
    "the token endpoint is down": ("PROXY_TOKEN_UNAVAILABLE", token(503)),
    "the credentials are wrong": ("PROXY_TOKEN_UNAVAILABLE", token(401)),
    "the credentials are wrong, and it says 500": ("PROXY_TOKEN_UNAVAILABLE", token(500)),
    "the credentials have no such scope": ("PROXY_TOKEN_UNAVAILABLE", token(403)),
    "the token endpoint asks for a pause": ("PROXY_TOKEN_UNAVAILABLE", token(429)),
    "a token answer makes no sense": ("PROXY_TOKEN_UNAVAILABLE", token(access_token=7)),
    "a token is for a host that may not have it": (
        "PROXY_TOKEN_UNAVAILABLE",
        token(endpoint="https://evil.example"),
    ),
    "even a fresh token is refused": ("PROXY_TOKEN_REFUSED", cloud(answers(401))),
    "other programs use the slots": ("PROXY_QUEUE_TIMEOUT", cloud(answers(403, CROWDED), queue_timeout=0.1)),
    "all slots are in use": ("PROXY_QUEUE_TIMEOUT", full),
    "the cloud can't be reached": ("PROXY_UPSTREAM_UNREACHABLE", nowhere),
    "the cloud closes without an answer": ("PROXY_UPSTREAM_UNREACHABLE", functools.partial(gateway, cut)),
    "the cloud's answer makes no sense": ("PROXY_UPSTREAM_UNREACHABLE", cloud(b"nonsense\r\n\r\n")),
    "the cloud is silent": (
        "PROXY_UPSTREAM_TIMEOUT",
        functools.partial(gateway, silence, contentsquare={"idle_timeout": 0.1}),
    ),
    "the cloud is the proxy itself": ("PROXY_LOOP", itself),
    "the proxy is stopping": ("PROXY_STOPPING", stopping),
}
NO_LATER_TRY_HELPS = {"even a fresh token is refused", "the cloud is the proxy itself"}
CALLERS_OWN = {
    "PROXY_BAD_REQUEST",
    "PROXY_BAD_TARGET",
    "PROXY_CALLER_UNKNOWN",
    "PROXY_FORBIDDEN",
    "PROXY_HOST_REFUSED",
    "PROXY_METHOD_REFUSED",
    "PROXY_NOT_FOUND",
    "PROXY_ORIGIN_REFUSED",
    "PROXY_REQUEST_TIMEOUT",
    "PROXY_UNKNOWN_PROJECT",
}
"""Codes of errors that only the caller can correct."""
OF_EXPORTS = {"PROXY_EXPORT_NOT_READY", "PROXY_EXPORT_EXPIRED"}
"""Codes that tell of an export's run, which no try soon after changes."""
OTHERS = {"PROXY_INTERNAL_ERROR"}
"""The code for a bug, which is a 500."""


@pytest.mark.parametrize("name", TROUBLE)
async def test_trouble_of_ours_never_asks_the_person_for_credentials(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.tokens.schedule.BACKOFF_S", (60.0, 60.0, 60.0))
    monkeypatch.setattr(LeaseKeeper._hurry, "__kwdefaults__", {"gap_s": 0.01})
    code, case = TROUBLE[name]
    async with case() as proxy:
        answer = await proxy.call(b"GET /v1/segments")
        assert answer.error_code == code
        assert answer.status in (502, 503, 504)
        after = answer.values(b"retry-after")
        if name in NO_LATER_TRY_HELPS:
            assert after == []
        else:
            assert len(after) == 1
            assert after[0].isdigit()
            assert 1 <= int(after[0]) <= LONGEST_WAIT_S


async def test_a_request_that_changes_data_is_not_to_be_sent_again_blindly() -> None:
    async with gateway(cut) as proxy:
        answer = await proxy.call(b"POST /v1/exports", b"Content-Length: 2", body=b"{}")
        assert (answer.error_code, answer.values(b"retry-after")) == ("PROXY_UPSTREAM_UNREACHABLE", [])
    async with nowhere() as proxy:  # no byte of the request was sent
        answer = await proxy.call(b"POST /v1/exports", b"Content-Length: 2", body=b"{}")
        assert (answer.error_code, answer.values(b"retry-after")) == ("PROXY_UPSTREAM_UNREACHABLE", [b"5"])


def kinds(base: type[ProxyError] = ProxyError) -> set[type[ProxyError]]:
    found = {base} if base is not ProxyError else set()
    return found.union(*(kinds(kind) for kind in base.__subclasses__()))


def test_every_error_is_either_the_callers_own_or_in_the_table() -> None:
    codes = {kind.code for kind in kinds()}
    assert codes == CALLERS_OWN | OF_EXPORTS | OTHERS | {code for code, _ in TROUBLE.values()}
    asking = {kind.code for kind in kinds() if kind.status in ASKS_FOR_CREDENTIALS}
    assert asking == {"PROXY_CALLER_UNKNOWN", "PROXY_FORBIDDEN", "PROXY_ORIGIN_REFUSED"}


# The text for Power Query, evaluated


needs_parser = pytest.mark.skipif(
    not has_parser(), reason="no node with @microsoft/powerquery-parser in $NODE_PATH here"
)


@needs_parser
@pytest.mark.parametrize("what", ["powerbi", "excel"])
@with_and_without_callers
async def test_the_snippet_gives_a_row_a_day_of_the_last_week(what: str, with_callers: bool) -> None:
    async with served(with_callers) as settings:
        key = KEY if with_callers else ""
        rows, errors = await ended(await evaluate(text(what, settings), key=key))
        assert errors == ""
        today = dt.datetime.now(dt.UTC).date()
        days = {dt.datetime.fromisoformat(row["startDate"]).date() for row in rows}
        assert len(rows) == len(days) == 7
        assert days <= {
            today - dt.timedelta(days=back) for back in range(1, 9)
        }  # midnight may pass meanwhile
        assert all(row["value"] > 0 for row in rows)
        if with_callers:
            rows, errors = await ended(await evaluate(text(what, settings), key="wrong"))
            assert (rows, errors) == ([], "it asks for credentials: 401\n")


@needs_parser
@with_and_without_callers
async def test_the_snippet_for_answers_in_pages_has_the_rows_of_all(with_callers: bool) -> None:
    async with served(with_callers) as settings:
        m = text("powerbi-pages", settings)
        whole, errors = await ended(await evaluate(m, key=KEY if with_callers else ""))
        assert errors == ""
        assert len(whole) > 1
        in_pages, errors = await ended(
            await evaluate(m.replace('"100"', '"1"'), key=KEY if with_callers else "")
        )
        assert errors == ""
        assert in_pages == whole
        [project] = settings.projects.values()
        assert f'"v1/public/projects/{project.project_id}/surveys"' in m


@needs_parser
async def test_power_query_waits_as_long_as_it_is_told_and_then_has_its_rows() -> None:
    release = asyncio.Event()
    values = [{"startDate": "2026-01-01T00:00:00.000Z", "value": 7}]
    content = json.dumps({"success": True, "payload": {"values": values}}).encode()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await next_request(reader)
            if b"/v1/first" in request.start_line:
                await release.wait()
            writer.write(OK if b"/v1/first" in request.start_line else answers(200, content))
            await writer.drain()

    async with gateway(script, contentsquare={"max_concurrency": 1, "queue_timeout": 0.3}) as proxy:
        first = asyncio.create_task(proxy.call(b"GET /v1/first"))
        [project] = proxy.app.projects()
        while not project.slots.in_use:
            await asyncio.sleep(0.005)
        process = await evaluate(
            text("powerbi", settings_of(projects={"shop": PROJECT}, server={"port": proxy.port}))
        )
        assert process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            line = await process.stderr.readline()
        assert line.startswith(b"503: again in ")
        release.set()
        rows, _ = await ended(process)
        assert [row["value"] for row in rows] == [7]
        assert (await first).status == 200
