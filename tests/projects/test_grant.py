"""`proxy.projects.grant`: what tokens are requested with."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.living import CREDENTIALS

from proxy.config.settings import Credentials
from proxy.contentsquare import Api
from proxy.projects import Grant
from proxy.secret import Secret

GRANT = Grant(CREDENTIALS, project_id=42, integration_id=7)
STANDBY = Credentials(client_id="id-2", client_secret=Secret("secret-2"))


def test_the_pairs_are_the_first_and_the_standby() -> None:
    assert GRANT.pairs == (CREDENTIALS,)
    assert replace(GRANT, standby=STANDBY).pairs == (CREDENTIALS, STANDBY)


def test_only_enrichment_needs_an_integration_id() -> None:
    assert all(map(GRANT.allows, Api))
    without = replace(GRANT, integration_id=None)
    assert [api for api in Api if not without.allows(api)] == [Api.ENRICHMENT]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (GRANT, True),
        (replace(GRANT, apis=(Api.METRICS,), standby=STANDBY), True),
        (replace(GRANT, credentials=Credentials(client_id="id-1", client_secret=Secret("new"))), True),
        (replace(GRANT, credentials=STANDBY), False),
        (replace(GRANT, project_id=43), False),
        (replace(GRANT, integration_id=None), False),
    ],
)
def test_grants_are_for_the_same_data_whatever_their_secrets(other: Grant, same: bool) -> None:
    assert GRANT.is_for_the_same_data(other) is same


def test_no_repr_holds_a_secret_or_a_client_id() -> None:
    shown = repr(replace(GRANT, standby=STANDBY))
    assert not any(text in shown for text in ("id-1", "id-2", "secret-1", "secret-2"))
