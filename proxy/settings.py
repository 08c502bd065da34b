"""The settings as types: one frozen model a table of the configuration file.

Hides pydantic from the rest. Knows nothing of where values come from (`proxy.config`) and holds
no rule that spans two keys (`proxy.rules`). Field names are the contract with the people who
write the file; a time is in seconds, and None means "not set". Secrets are `SecretStr`, so that no
repr shows one. No postponed annotations here: pydantic needs the types at run time.
"""

import datetime as dt
import enum
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from proxy.contentsquare import AUTH_URL, MAX_CONCURRENCY, Api
from proxy.origin import Origin

DEFAULT_PORT = 8277
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
"""Values of ``server.host`` that mean every address of this computer."""
_DAY_S = 86_400
_DOMAIN = re.compile(r"\*(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?){2,}\Z")
_DURATION = re.compile(r"(?:([0-9]{1,9})\s*([smh]?))?\Z", re.ASCII)
_UNITS_S = {None: 1, "": 1, "s": 1, "m": 60, "h": 3600}
_HOST = re.compile(r"[^\s/@\[\]]+\Z")


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic wants ValueError
    return value


def _path(value: object) -> object:
    if isinstance(value, (str, Path)) and "\0" in str(value):
        raise ValueError("must be a path, which has no NUL character")
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
    if not _HOST.match(host) or (":" in host and not is_ipv6):
        raise ValueError("must be a name or an address without a port; the port is server.port")
    return host


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


def _duration(value: object) -> int:
    """Seconds, of a whole number with a unit or without one; 0 for nothing."""
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


Text: TypeAlias = Annotated[str, Field(min_length=1)]
Secret: TypeAlias = Annotated[SecretStr, Field(min_length=1)]
Port: TypeAlias = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=65_535)]
Id: TypeAlias = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
Seconds: TypeAlias = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=_DAY_S, allow_inf_nan=False)]
Duration: TypeAlias = Annotated[int, BeforeValidator(_duration)]
FilePath: TypeAlias = Annotated[Path | None, BeforeValidator(_path)]
Date: TypeAlias = Annotated[dt.date, BeforeValidator(_date)]
Apis: TypeAlias = Annotated[tuple[Api, ...], AfterValidator(_distinct)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ServerSettings(_Table):
    """Where we listen. ``port`` 0 is any free port; ``tls_cert`` and ``tls_key`` come together."""

    host: Annotated[str, AfterValidator(_listen_host)] = "127.0.0.1"
    port: Port = DEFAULT_PORT
    unix_socket: FilePath = None
    allowed_hosts: tuple[Annotated[str, AfterValidator(_host_value)], ...] = ()
    tls_cert: FilePath = None
    tls_key: FilePath = None
    drain_timeout: Seconds = 30.0
    allow_quit: bool = False


class LogSettings(_Table):
    """What is logged, and how. ``format`` "auto" is text on a terminal and JSON lines elsewhere."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    format: Annotated[Literal["auto", "text", "json"], BeforeValidator(_lower)] = "auto"


class ContentsquareSettings(_Table):
    """How Contentsquare is reached. ``auth_url`` is a base URL without a final slash."""

    auth_url: Annotated[str, AfterValidator(_auth_url)] = AUTH_URL
    allowed_endpoints: Annotated[
        tuple[Annotated[str, AfterValidator(_endpoint)], ...], Field(min_length=1)
    ] = ("*.contentsquare.com",)
    ca_file: FilePath = None
    connect_timeout: Seconds = 10.0
    idle_timeout: Seconds = 300.0
    max_concurrency: Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=1000)] = MAX_CONCURRENCY
    queue_timeout: Seconds = 60.0


class Credentials(_Table):
    """A client's id and secret.

    ``client_secret`` is always there after loading, whichever way it was given; the file and the
    command stay beside it so that they can be watched and asked again.
    """

    client_id: Text
    client_secret: Secret
    client_secret_file: FilePath = None
    client_secret_command: Annotated[tuple[str, ...] | None, Field(min_length=1, repr=False)] = None


class Access(Credentials):
    """What projects and accounts share. ``apis`` None: what ``/v1/oauth/me`` names.

    ``cache`` is for how long an answer may be stored, in seconds; 0: not at all.
    """

    apis: Apis | None = None
    expires: Date | None = None
    standby: Credentials | None = None
    read_only: bool = False
    coalesce: bool = False
    cache: Duration = 0


class ProjectSettings(Access):
    """One project. ``port`` 0: no listener of its own."""

    project_id: Id | None = None
    integration_id: Id | None = None
    default: bool = False
    port: Port = 0


class AccountSettings(Access):
    """Account-level credentials. ``projects`` None: any project of the account."""

    projects: Annotated[tuple[Id, ...] | None, AfterValidator(_not_empty)] = None


class CallerSettings(_Table):
    """Somebody who may call. ``projects`` None: all projects and accounts."""

    key: Secret
    key_file: FilePath = None
    projects: Annotated[tuple[Text, ...] | None, AfterValidator(_not_empty)] = None
    read_only: bool = False


def _no_projects() -> Mapping[str, ProjectSettings]:
    return MappingProxyType({})


def _no_accounts() -> Mapping[str, AccountSettings]:
    return MappingProxyType({})


def _no_callers() -> Mapping[str, CallerSettings]:
    return MappingProxyType({})


class Layer(PydanticBaseSettingsSource):
    """A settings source that is a nested dict already."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """The value of one field; pydantic-settings' interface."""
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:  # noqa: D102 - described by the class
        return self._values


class Settings(BaseSettings):
    """The whole configuration, frozen. Made by `proxy.config.load`.

    Built directly, ``Settings(projects={...})``, it reads neither environment nor file.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    server: ServerSettings = Field(default_factory=ServerSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    contentsquare: ContentsquareSettings = Field(default_factory=ContentsquareSettings)
    projects: Annotated[Mapping[str, ProjectSettings], AfterValidator(MappingProxyType)] = Field(
        default_factory=_no_projects
    )
    accounts: Annotated[Mapping[str, AccountSettings], AfterValidator(MappingProxyType)] = Field(
        default_factory=_no_accounts
    )
    callers: Annotated[Mapping[str, CallerSettings], AfterValidator(MappingProxyType)] = Field(
        default_factory=_no_callers
    )
    _source: Path | None = PrivateAttr(None)
    _secrets_of_environment: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def from_layers(cls, layers: tuple[dict[str, Any], ...], source: Path | None = None) -> "Settings":
        """The settings out of nested dicts, the first winning. Raises pydantic's ValidationError."""
        settings = cls(layers=layers)  # type: ignore[call-arg]
        settings._source = source
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
        """Our layers in place of pydantic-settings' own sources, whose messages aren't for people."""
        values = init_settings()
        layers = values.pop("layers", None)
        if layers is None:
            return (init_settings,)
        return tuple(Layer(settings_cls, layer) for layer in layers)

    @property
    def source(self) -> Path | None:
        """The configuration file that was read, None where there is none."""
        return self._source

    @property
    def secrets_of_environment(self) -> tuple[str, ...]:
        """The environment variables that secrets came from."""
        return self._secrets_of_environment

    def note_secrets_of_environment(self, names: Iterable[str]) -> None:
        """Say where secrets came from; for `proxy.config.load`, before anybody else has these settings."""
        self._secrets_of_environment = tuple(names)

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
            return None if "default" in project.model_fields_set else name
        return None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that these settings came from or point to: what a reload has to watch."""
        return tuple(dict.fromkeys(path for path in self._all_files() if path is not None))

    def _all_files(self) -> Iterator[Path | None]:
        yield self._source
        yield from (self.server.tls_cert, self.server.tls_key, self.contentsquare.ca_file)
        owners: tuple[Access, ...] = (*self.projects.values(), *self.accounts.values())
        for owner in owners:
            yield owner.client_secret_file
            if owner.standby is not None:
                yield owner.standby.client_secret_file
        for caller in self.callers.values():
            yield caller.key_file


class Leaf(enum.Enum):
    """What a key holds, as far as reading it from text is concerned."""

    SCALAR = "scalar"
    LIST = "list"
    PATH = "path"
    SECRET = "secret"  # noqa: S105 - a kind of key


Schema: TypeAlias = Mapping[str, "Leaf | Schema"]
ANY_NAME = "*"
"""The key in a `Schema` that stands for the names that people choose."""


@functools.cache
def schema(model: type[BaseModel] = Settings) -> Schema:
    """The keys that a table may hold, nested; a table of named tables has the one key `ANY_NAME`."""
    return MappingProxyType({name: _node(field.annotation) for name, field in model.model_fields.items()})


def _node(annotation: object) -> Leaf | Schema:
    parts = set(_parts(annotation))
    for part in parts:
        if isinstance(part, type) and issubclass(part, BaseModel):
            table = schema(part)
            return MappingProxyType({ANY_NAME: table}) if Mapping in parts else table
    if tuple in parts:
        return Leaf.LIST
    if Path in parts:
        return Leaf.PATH
    return Leaf.SECRET if SecretStr in parts else Leaf.SCALAR


def _parts(annotation: object) -> Iterator[object]:
    yield get_origin(annotation) or annotation
    for argument in get_args(annotation):
        yield from _parts(argument)
