"""``csq-proxy snippets``: the texts, made from the configuration; without one, those of the running proxy.

The proxy has the texts for tools. A text for operators is made from a configuration, so without one there are
only those for the sandbox's projects, which are always the same.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from proxy.cli.console import fail, note, say
from proxy.cli.running_proxy import RunningProxy, Unreachable, find
from proxy.cli.snippets.text import FOR_CALLERS, FOR_OPERATORS, for_callers, text_of
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.errors import ConfigError, NothingConfigured, UnknownProject
from proxy.process import own_command


def show(
    project: str | None, what: str | None, *, config: Path | None, url: str | None, key_file: Path | None
) -> None:
    """Print the text ``what``; None: those for all tools. Raises ConfigError, SystemExit."""
    if what is not None and what not in FOR_CALLERS + FOR_OPERATORS:
        raise ConfigError(
            f"--for {what}: there are {', '.join(FOR_CALLERS)}; for operators {', '.join(FOR_OPERATORS)}"
        )
    texts = _texts(project, what, config=config, url=url, key_file=key_file)
    for name, text in texts.items():
        say(f"--- {name}\n\n{text}" if what is None else text.rstrip("\n"))
    if what is None:
        say(f"--- for operators: --for {', '.join(FOR_OPERATORS)}")


def _texts(
    project: str | None, what: str | None, *, config: Path | None, url: str | None, key_file: Path | None
) -> Mapping[str, str]:
    nothing: tuple[str, ...] = ()
    if url is None:
        try:
            settings = load(config)
            for place in settings.passed_over:
                note(f"passed over: {place}")
            return _of_settings(settings, project, what)
        except NothingConfigured as error:
            if config is not None:
                raise
            nothing = error.faults
    try:
        return _of_running(find(config, url, key_file), project, what)
    except Unreachable as unreachable:
        fail((*nothing, str(unreachable)), 2 if nothing else 1)


def _of_settings(settings: Settings, project: str | None, what: str | None) -> Mapping[str, str]:
    today = dt.datetime.now(dt.UTC).date()
    return {
        name: text_of(name, settings, project, today=today, own=own_command())
        for name in (for_callers(settings) if what is None else (what,))
    }


def _of_running(proxy: RunningProxy, project: str | None, what: str | None) -> Mapping[str, str]:
    """The proxy's texts; ``project`` None is its first. Raises Unreachable, and ConfigError for a name."""
    status = proxy.status()
    if what in FOR_OPERATORS:
        if "--sandbox" not in str(status.get("start_command", "")).split():
            raise ConfigError(f"--for {what}: is made from the configuration, so give its --config")
        return _of_sandbox(proxy, project, what)
    accounts = status.get("accounts", ())
    names = (*status["projects"], *accounts)
    name = project or next(iter(names), "")
    answer = proxy.call("GET", f"/-/snippets?{urlencode({'project': name})}")
    found = answer.json()
    if answer.status == 404 and isinstance(found, dict) and "errorMessage" in found:
        if found.get("errorCode") != UnknownProject.code:
            raise ConfigError(f"{proxy.url}: {found['errorMessage']}")
        if name.partition("/")[0] in accounts:
            raise ConfigError(
                f"{name}: an account's project has texts once a request has used it;"
                " with the proxy's --config it has them at once"
            )
        raise ConfigError(f"{name}: there is no such project; there are {', '.join(names)}")
    if answer.status != 200:
        raise proxy.refused(answer)
    try:
        texts = {str(one["tool"]): str(one["text"]) for one in found["tools"]}
    except (KeyError, TypeError):
        raise proxy.stranger() from None
    if what is not None and what not in texts:
        raise ConfigError(f"--for {what}: the proxy at {proxy.url} has only {', '.join(texts)}")
    return texts if what is None else {what: texts[what]}


def _of_sandbox(proxy: RunningProxy, project: str | None, what: str | None) -> Mapping[str, str]:
    from proxy.cli.sandbox import demo_settings  # noqa: PLC0415 - needless beside a configuration
    from proxy.sandbox import Sandbox  # noqa: PLC0415

    port = urlsplit(proxy.url).port if proxy.url.startswith("http") else None
    settings = demo_settings(Sandbox(), {"server": {"port": port}})
    texts = _of_settings(settings, project, what)
    if any(name in text for name in settings.projects for text in texts.values()):
        note("these are the sandbox's projects, which Contentsquare doesn't know; for yours: csq-proxy init")
    return texts
