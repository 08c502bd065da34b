"""An answer of Contentsquare's token endpoint, as its documentation shows it."""

from __future__ import annotations

GOOD: dict[str, object] = {
    "access_token": "eyJ.abc.def",
    "token_type": "bearer",
    "expires_in": 3600,
    "scope": "data-export",
    "project_id": 42,
    "endpoint": "https://api.eu-west-1.production.contentsquare.com",
}
