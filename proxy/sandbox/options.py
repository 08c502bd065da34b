"""A sandbox's options, demo credentials and counters.

Values only, no behaviour. The credentials are public by design: they are good for the sandbox alone.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from proxy.contentsquare import MAX_CONCURRENCY, TOKEN_LIFETIME_S

CLOUDS = ("eu", "us")


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """The options of a sandbox; rates are shares between 0 and 1."""

    host: str = "127.0.0.1"
    port: int = 0
    """Of the authentication host, 0 for any free one. The other hosts take the ports that follow,
    or any free port where one of those is taken (always, with 0)."""
    token_lifetime_s: int = TOKEN_LIFETIME_S
    latency_s: float = 0.0
    """Added to each API answer, inside its slot; not to token answers."""
    failure_rate: float = 0.0
    """Of API requests, answered with 503."""
    token_failure_rate: float = 0.0
    """Of token requests, answered with 500, with 503, or with 200 and something that isn't JSON."""
    reset_rate: float = 0.0
    """Of API requests, whose connection is reset: half before the answer, half within its body."""
    max_concurrency: int = MAX_CONCURRENCY
    """API requests at once per project, over all APIs and hosts."""
    seed: int = 1
    """For the random failures; the data don't depend on it."""
    ssl_context: ssl.SSLContext | None = None
    """None: every host speaks plain HTTP; else HTTPS with this context."""
    public_host: str = ""
    """The host name in URLs, ``host`` where empty."""
    export_duration_s: float = 1.0
    """From the creation of an export job until its run is a success."""
    lenient: bool = False
    """The token endpoint also takes a form, ids as digits, and a request without ``scope``."""


@dataclass(frozen=True, slots=True)
class DemoProject:
    """A project, and its project-level credentials."""

    name: str
    project_id: int
    cloud: str
    client_id: str
    client_secret: str
    integration_id: int


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """Account-level credentials, good for each of the ``project_ids``."""

    client_id: str
    client_secret: str
    project_ids: tuple[int, ...]


DEMO_PROJECTS = (
    DemoProject("demo-eu", 42, "eu", "demo-eu-client-id", "demo-eu-client-secret", 7),
    DemoProject("demo-us", 43, "us", "demo-us-client-id", "demo-us-client-secret", 8),
)
DEMO_ACCOUNT = DemoAccount(
    "demo-account-client-id",
    "demo-account-client-secret",
    tuple(project.project_id for project in DEMO_PROJECTS),
)


@dataclass(slots=True)
class Counters:
    """Counts since the start; plain numbers that only grow."""

    token_requests: int = 0
    """Every POST to the token endpoint, refused or not."""
    api_requests: int = 0
    """Every request to an API host, injected failures included; not downloads from storage."""
    expired_tokens_seen: int = 0
    """Answers 401 ``JWT_EXPIRED``."""
    unauthorized: int = 0
    """Other 401 answers: no bearer token, one that this sandbox didn't issue or has revoked,
    or one for another host."""
    concurrency_refusals: int = 0
    """Answers 429 ``CONCURRENT_API_CALL``."""
    peak_concurrency: dict[int, int] = field(default_factory=dict)
    """The most API requests served at once, by project id."""
