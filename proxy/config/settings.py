"""The settings: one pydantic model, with a table of the configuration file for each class here.

`proxy.config.load` reads the places where values come from; a rule that spans two keys is in
`proxy.config.checks`. Field names are the contract with the people who write the file. A time is in seconds,
and None means "not set".
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, PrivateAttr
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from proxy.config.files import path_fault
from proxy.config.pasted import value_of
from proxy.contentsquare import AUTH_URL, DOWNLOAD_HOSTS, MAX_CONCURRENCY, Api
from proxy.origin import Origin
from proxy.secret import Secret

DEFAULT_PORT = 8277
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
"""Values of ``server.host`` that mean every address of this computer."""
LOCALHOST = ("127.0.0.1", "::1")
"""The addresses of ``localhost``. Texts for people name the first one, which needs no look-up."""
_DAY_S = 86_400
_DOMAIN = re.compile(r"\*(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?){2,}\Z")
_DURATION = re.compile(r"(?:([0-9]{1,9})\s*([smh]?))?\Z", re.ASCII)
_UNITS_S = {None: 1, "": 1, "s": 1, "m": 60, "h": 3600}
_HOST = re.compile(r"[^\s/@\[\]]+\Z")
_LAYERS = "layers"
"""The argument by which `Settings.of_layers` hands the layers to pydantic-settings' sources."""


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic wants ValueError
    return value


def _secret(value: object) -> object:
    if not isinstance(value, (str, Secret)):
        raise ValueError("must be text, in quotes")  # noqa: TRY004
    if isinstance(value, str):
        return Secret(value_of(value))
    return Secret(value_of(value.get_secret_value()), value.source, value.read_at)


def _path(value: object) -> object:
    if isinstance(value, (str, Path)) and (fault := path_fault(str(value))):
        raise ValueError(fault)
    return None if value in ("", Path()) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _date(value: object) -> dt.date:
    if isinstance(value, dt.datetime):
        return value.date()
    if isinstance(value, dt.date):
        return value
    try:
        return dt.date.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError("must be a date, such as 2027-01-31") from None


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _not_empty(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if values == ():
        raise ValueError("must name at least one; leave it out to allow all")
    return values


def _listen_host(value: str) -> str:
    host = value.removeprefix("[").removesuffix("]")
    is_ipv6 = host.count(":") > 1
    if host == "*":
        raise ValueError('must be a name or an address; all addresses are "0.0.0.0", or "::" for IPv6')
    if not _HOST.match(host) or (":" in host and not is_ipv6) or not _is_encodable(host):
        raise ValueError("must be a name or an address without a port; the port is server.port")
    return host.lower()


def _is_encodable(host: str) -> bool:
    try:
        return host.isprintable() and bool(host.encode("idna"))
    except UnicodeError:
        return False


def _host_value(value: str) -> str:
    try:
        Origin.parse(f"http://{value.replace('/', ' ')}")
    except ValueError:
        raise ValueError('must be "host" or "host:port", as it stands in the Host field') from None
    return value.lower()


def _endpoint(value: str) -> str:
    pattern = value.lower()
    if _DOMAIN.match(pattern):
        return pattern
    try:
        Origin.parse(f"https://{pattern.replace('/', ' ')}")
    except ValueError:
        raise ValueError('must be "host", "host:port" or "*.domain"') from None
    return pattern


def _auth_url(value: str) -> str:
    origin = Origin.parse(value)
    if not origin.is_tls and not origin.is_loopback:
        raise ValueError("must start with https://; plain http is for loopback hosts only")
    return str(origin)


def _public_url(value: str) -> str:
    return value and str(Origin.parse(value))


def _duration(value: object) -> int:
    """The seconds of a duration, a whole number with a unit or without one; 0 for an empty text."""
    match = _DURATION.match(value.strip()) if isinstance(value, str) else None
    if match is not None:
        seconds = int(match[1] or 0) * _UNITS_S[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        seconds = value
    else:
        seconds = -1
    if not 0 <= seconds <= _DAY_S:
        raise ValueError('must be a duration of at most 24h: "60s", "5m", "1h" or whole seconds; "" is off')
    return seconds


def _read_only(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(values))


def _no_tables() -> Mapping[str, Any]:
    return MappingProxyType({})


T = TypeVar("T")
Text: TypeAlias = Annotated[str, Field(min_length=1)]
ClientId: TypeAlias = Annotated[str, AfterValidator(value_of)]
SecretText: TypeAlias = Annotated[InstanceOf[Secret], BeforeValidator(_secret)]
Port: TypeAlias = Annotated[int, Field(ge=0, le=65_535), BeforeValidator(_no_bool)]
Id: TypeAlias = Annotated[int, Field(ge=1), BeforeValidator(_no_bool)]
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=_DAY_S, allow_inf_nan=False), BeforeValidator(_no_bool)]
Duration: TypeAlias = Annotated[int, BeforeValidator(_duration)]
FilePath: TypeAlias = Annotated[Path | None, BeforeValidator(_path)]
Date: TypeAlias = Annotated[dt.date, BeforeValidator(_date)]
Apis: TypeAlias = Annotated[tuple[Api, ...], AfterValidator(_distinct)]
Endpoint: TypeAlias = Annotated[str, AfterValidator(_endpoint)]
Named: TypeAlias = Annotated[Mapping[str, T], AfterValidator(_read_only)]


class Table(BaseModel):
    """A table of the file. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ServerSettings(Table):
    """Where the proxy listens. ``port`` 0 is any free port; ``tls_cert`` and ``tls_key`` come together.

    ``host`` "localhost" is 127.0.0.1 and, where the machine has it, ::1. Without ``tcp`` the proxy listens on
    ``unix_socket`` and on the sockets that a service manager passes to it, only.

    While requests wait for a project's slots, a caller must take ``min_rate`` bytes/s of an answer that lies
    ready, over ``min_rate_after`` seconds, or the answer is cut; 0 turns this off.

    ``state_dir`` is the folder for the counts of calls; None: they last as long as the process.

    ``public_url`` is the origin of a server in front of the proxy, by which callers reach it; empty: none.
    """

    host: Annotated[str, AfterValidator(_listen_host)] = "localhost"
    port: Port = DEFAULT_PORT
    tcp: bool = True
    unix_socket: FilePath = None
    allowed_hosts: tuple[Annotated[str, AfterValidator(_host_value)], ...] = ()
    public_url: Annotated[str, AfterValidator(_public_url)] = ""
    tls_cert: FilePath = None
    tls_key: FilePath = None
    drain_timeout: Seconds = 30.0
    min_rate: Annotated[int, Field(ge=0, le=2**30), BeforeValidator(_no_bool)] = 16_384
    min_rate_after: Seconds = 30.0
    allow_quit: bool = False
    state_dir: FilePath = None

    @property
    def host_values(self) -> tuple[str, ...]:
        """The values of Host that are accepted beside loopback names."""
        if not self.public_url:
            return self.allowed_hosts
        origin = Origin.parse(self.public_url)
        return (*self.allowed_hosts, origin.authority, origin.host_port)


class LogSettings(Table):
    """The log's level and format. ``format`` "auto" is text on a terminal and JSON lines elsewhere.

    ``file`` None is standard error. ``requests``: whether the last requests are kept in memory.
    """

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    format: Annotated[Literal["auto", "text", "json"], BeforeValidator(_lower)] = "auto"
    file: FilePath = None
    requests: bool = True


class ContentsquareSettings(Table):
    """How Contentsquare is reached. ``auth_url`` is a base URL without a final slash.

    ``allowed_downloads`` are the hosts that export files may be on. ``export_spool`` is how many bytes of
    files that the proxy makes of them (unpacked, joined or packed) are kept on disk, to tell their length.
    """

    auth_url: Annotated[str, AfterValidator(_auth_url)] = AUTH_URL
    allowed_endpoints: Annotated[tuple[Endpoint, ...], Field(min_length=1)] = ("*.contentsquare.com",)
    allowed_downloads: tuple[Endpoint, ...] = DOWNLOAD_HOSTS
    export_spool: Annotated[int, Field(ge=0, le=2**40), BeforeValidator(_no_bool)] = 268_435_456
    ca_file: FilePath = None
    connect_timeout: Seconds = 10.0
    idle_timeout: Seconds = 300.0
    max_concurrency: Annotated[int, Field(ge=1, le=1000), BeforeValidator(_no_bool)] = MAX_CONCURRENCY
    queue_timeout: Seconds = 60.0


class Credentials(Table):
    """A client's id and secret.

    After loading, ``client_secret`` always holds the secret, also one from a file or a command. The file
    and the command stay beside it, so that a reload can read them again.
    """

    client_id: ClientId
    client_secret: SecretText
    client_secret_file: FilePath = None
    client_secret_command: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None, repr=False
    )


class Access(Credentials):
    """The settings that projects and accounts share. ``apis`` None: the APIs that ``/v1/oauth/me`` names.

    ``cache`` is how long an answer may be stored, in seconds; 0: not at all. ``quota`` is how many calls a
    month there may be before the proxy warns, for an account of all its projects together; None: any.
    """

    apis: Apis | None = None
    expires: Date | None = None
    standby: Credentials | None = None
    read_only: bool = False
    coalesce: bool = False
    cache: Duration = 0
    quota: Annotated[int, Field(ge=1, le=10**12), BeforeValidator(_no_bool)] | None = None


class ProjectSettings(Access):
    """One project. ``default`` None: not set. ``port`` 0: no listener of its own."""

    project_id: Id | None = None
    integration_id: Id | None = None
    default: bool | None = None
    port: Port = 0


class AccountSettings(Access):
    """Account-level credentials. ``projects`` None: any project of the account."""

    projects: Annotated[tuple[Id, ...] | None, AfterValidator(_not_empty)] = None


class CallerSettings(Table):
    """A caller and its rights. ``projects`` None: all projects and accounts."""

    key: SecretText
    key_file: FilePath = None
    projects: Annotated[tuple[Text, ...] | None, AfterValidator(_not_empty)] = None
    read_only: bool = False


class Settings(BaseSettings):
    """The whole configuration, as `proxy.config.load.load` makes it."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, case_sensitive=True
    )

    server: ServerSettings = ServerSettings()
    log: LogSettings = LogSettings()
    contentsquare: ContentsquareSettings = ContentsquareSettings()
    projects: Named[ProjectSettings] = Field(default_factory=_no_tables)
    accounts: Named[AccountSettings] = Field(default_factory=_no_tables)
    callers: Named[CallerSettings] = Field(default_factory=_no_tables)
    _source: Path | None = PrivateAttr(None)
    _secrets_of_environment: tuple[str, ...] = PrivateAttr(())
    _passed_over: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def of_layers(
        cls,
        layers: Sequence[dict[str, Any]],
        source: Path | None,
        secrets_of_environment: tuple[str, ...] = (),
        passed_over: tuple[str, ...] = (),
    ) -> Self:
        """The settings out of nested dicts; the first that has a key wins. Raises ValidationError."""
        given: dict[str, Any] = {_LAYERS: layers}
        settings = cls(**given)
        settings._source = source
        settings._secrets_of_environment = secrets_of_environment
        settings._passed_over = passed_over
        return settings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' interface
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The layers, or the arguments that were given; nothing is read here.

        pydantic-settings' own source for the environment stops at the first list that isn't JSON, passes over
        unknown variables, and can't tell which variable is wrong. Its source for TOML reports no lines.
        """
        given = init_settings()
        return tuple(InitSettingsSource(settings_cls, layer) for layer in given.pop(_LAYERS, (given,)))

    @property
    def source(self) -> Path | None:
        """The file that was read, None where there is none."""
        return self._source

    @property
    def secrets_of_environment(self) -> tuple[str, ...]:
        """The environment variables that secrets came from."""
        return self._secrets_of_environment

    @property
    def passed_over(self) -> tuple[str, ...]:
        """The usual places of the file where something else is, each with the reason."""
        return self._passed_over

    @property
    def default_project(self) -> str | None:
        """The project that answers paths without a project's name, None where there is none.

        The one with ``default = true``, or a lone project that doesn't say ``default = false``.
        """
        for name, project in self.projects.items():
            if project.default:
                return name
        if len(self.projects) == 1:
            name, project = next(iter(self.projects.items()))
            return name if project.default is None else None
        return None

    @property
    def quotas(self) -> dict[str, int]:
        """The quotas of calls a month, by the name of the project or account."""
        owners: dict[str, Access] = {**self.projects, **self.accounts}
        return {name: owner.quota for name, owner in owners.items() if owner.quota is not None}

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that these settings came from or point to: a reload watches these files."""
        return tuple(dict.fromkeys(path for path in self._all_files() if path is not None))

    def _all_files(self) -> Iterator[Path | None]:
        yield self.source
        yield from (self.server.tls_cert, self.server.tls_key, self.contentsquare.ca_file)
        owners: tuple[Access, ...] = (*self.projects.values(), *self.accounts.values())
        for owner in owners:
            yield owner.client_secret_file
            if owner.standby is not None:
                yield owner.standby.client_secret_file
        for caller in self.callers.values():
            yield caller.key_file
