"""Settings from flags, environment, secret files and TOML together: precedence, and all faults at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configurations import CANARY, SHOP, Writer, faults_of
from support.texts import texts

from proxy.config.load import load
from proxy.errors import ConfigError


def test_flags_win_over_environment_over_file_over_default(write: Writer) -> None:
    path = write(f"[server]\nport = 1\ndrain_timeout = 11\nallow_quit = true\n{SHOP}")
    environ = {"CSQ_PROXY_SERVER__PORT": "2", "CSQ_PROXY_SERVER__DRAIN_TIMEOUT": "12"}
    server = load(path, {"server": {"port": 3, "host": None}}, environ).server
    assert (server.port, server.drain_timeout, server.allow_quit, server.host) == (3, 12.0, True, "localhost")


def test_a_table_may_come_from_several_places_at_once(write: Writer) -> None:
    path = write('[projects.shop]\nclient_id = "id"\n')
    settings = load(
        path, {"projects": {"shop": {"port": 9}}}, {"CSQ_PROXY_PROJECTS__SHOP__CLIENT_SECRET": CANARY}
    )
    shop = settings.projects["shop"]
    assert (shop.client_id, shop.client_secret.get_secret_value(), shop.port) == ("id", CANARY, 9)


def test_no_project_says_how_to_start(write: Writer) -> None:
    (fault,) = faults_of(write("[server]\nport = 1\n"))
    assert "csq-proxy init" in fault
    assert "--sandbox" in fault


def test_all_faults_are_reported_at_once(write: Writer) -> None:
    path = write(
        f"""
        [server]
        port = true
        [projects.shop]
        clientid = "{CANARY}"
        client_secret = "{CANARY}"
        apis = ["enrichment"]
        [projects.other]
        client_id = "x"
        client_secret_file = "missing"
        default = "perhaps"
        [callers.x]
        projects = ["shpo"]
        """
    )
    keys = [fault.partition(":")[0] for fault in faults_of(path, {"CSQ_PROXY_LOG__LEVL": "info"})]
    assert keys == [
        "CSQ_PROXY_LOG__LEVL",
        "projects.other.client_secret_file",
        "server.port",
        "projects.shop.client_id",
        "projects.shop.clientid",
        "projects.other.default",
        "callers.x.key",
        "projects.shop.apis",
        "callers.x.projects[0]",
    ]


def test_a_word_in_place_of_a_table_is_a_fault_beside_flags_and_variables_for_that_table(
    write: Writer,
) -> None:
    path = write(f"server = 3\nlog = 'x'\ncallers = []\n{SHOP}")
    environ = {"CSQ_PROXY_LOG__LEVEL": "info", "CSQ_PROXY_CALLERS__BI__KEY": "a" * 16}
    with pytest.raises(ConfigError) as refused:
        load(path, {"server": {"port": 9000, "host": None}}, environ)
    keys = [fault.partition(":")[0] for fault in refused.value.faults]
    assert sorted(keys) == ["callers", "log", "server"]
    assert all("must be a table" in fault for fault in refused.value.faults)


toml_values = st.recursive(
    st.booleans() | st.integers(-3, 99_999) | texts(max_size=8) | st.just("metrics") | st.just("127.0.0.1"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts(max_size=5), inner, max_size=2),
    max_leaves=4,
)


# No client_secret_command: what hypothesis thinks of must not be run.
known_words = texts(max_size=6) | st.sampled_from(
    """server port tls_cert log level projects accounts callers shop client_id client_secret
    client_secret_file standby key key_file apis default expires project_id""".split()  # noqa: SIM905 - one word each
)


tables = st.recursive(
    st.dictionaries(known_words, toml_values, max_size=4),
    lambda inner: st.dictionaries(known_words, inner, max_size=4),
    max_leaves=6,
)


@given(tables)
def test_anything_at_all_gives_settings_or_faults_of_one_line_each(values: dict[str, Any]) -> None:
    try:
        faults: tuple[str, ...] = () if load(None, values, {}, search=False).projects else ("an account: ",)
    except ConfigError as error:
        faults = error.faults or ("",)
    for fault in faults:
        assert ": " in fault
        assert len(fault.splitlines()) == 1


def test_an_unchanged_file_loads_to_equal_settings(write: Writer) -> None:
    path = write(SHOP)
    assert load(path, environ={}) == load(path, environ={})
    assert load(path, environ={}) != load(path, {"server": {"port": 1}}, environ={})
