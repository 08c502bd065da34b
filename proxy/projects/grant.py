"""The grant of a project: its credentials, and the parameters of its token requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.config.settings import AccountSettings, Credentials, ProjectSettings
from proxy.contentsquare import Api
from proxy.tokens import TokenRequest


@dataclass(frozen=True, slots=True)
class Grant:
    """The credentials of a project, and what they are used for.

    ``project_id`` goes with account-level credentials, ``integration_id`` with Enrichment; None leaves
    them out. ``apis`` None means: the APIs that ``/v1/oauth/me`` names. ``standby`` is used if
    ``credentials`` are refused; None if there is none.
    """

    credentials: Credentials = field(repr=False)
    project_id: int | None = None
    integration_id: int | None = None
    apis: tuple[Api, ...] | None = None
    standby: Credentials | None = field(default=None, repr=False)

    @classmethod
    def of(cls, access: ProjectSettings | AccountSettings, project_id: int | None) -> Grant:
        """The grant of a configured project, or of one project of a configured account."""
        integration_id = access.integration_id if isinstance(access, ProjectSettings) else None
        return cls(access, project_id, integration_id, access.apis, access.standby)

    @property
    def pairs(self) -> tuple[Credentials, ...]:
        """The first pair of credentials and, if there is one, the standby."""
        return (self.credentials,) if self.standby is None else (self.credentials, self.standby)

    @property
    def usable_apis(self) -> tuple[Api, ...]:
        """The configured APIs, else all that tokens can be requested for."""
        return self.apis or tuple(api for api in Api if self.allows(api))

    def allows(self, api: Api) -> bool:
        """Whether tokens for this API can be requested: Enrichment needs ``integration_id``."""
        return api is not Api.ENRICHMENT or self.integration_id is not None

    def request(self, api: Api, credentials: Credentials) -> TokenRequest:
        """The request for a token of this API with one of the `pairs`."""
        return TokenRequest(credentials, api, self.project_id, self.integration_id)

    def is_for_the_same_data(self, other: Grant) -> bool:
        """Whether a token of one grant is as good for the other; their secrets may differ."""
        return (self.credentials.client_id, self.project_id, self.integration_id) == (
            other.credentials.client_id,
            other.project_id,
            other.integration_id,
        )
