"""The storage host: export files behind URLs that carry their own signature, as S3's do.

A request needs no bearer token, and a request with an Authorization field is refused, so that a
program that leaks its token to storage notices. Errors are XML, as S3's are.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from urllib.parse import urlencode

from aiohttp import web

from proxy.sandbox.rows import ExportFile
from proxy.sandbox.wire import send_pieces

LIFETIME_S = 7 * 24 * 3600


class Storage:
    """Signs files' URLs, and answers requests for them; ``base_url`` is set once it listens."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.base_url = ""
        self._now = now
        self._key = secrets.token_bytes(32)
        self._files: dict[str, ExportFile] = {}

    def sign(self, file: ExportFile) -> str:
        """A URL for the file, good for 7 days."""
        self._files[file.path] = file
        expires = str(int(self._now()) + LIFETIME_S)
        query = urlencode({"expires": expires, "signature": self._signature(file.path, expires)})
        return f"{self.base_url}{file.path}?{query}"

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Sends the file, or an error in XML."""
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        file = self._files[request.path]
        fields = {"Content-Disposition": f'attachment; filename="{file.name}"'}
        return await send_pieces(request, file.pieces(), content_type=file.content_type, fields=fields)

    def _refusal(self, request: web.BaseRequest) -> web.Response | None:
        if request.method not in ("GET", "HEAD"):
            return _error(
                405, "MethodNotAllowed", "The specified method is not allowed against this resource."
            )
        if "Authorization" in request.headers:
            return _error(
                400, "InvalidArgument", "Only one auth mechanism allowed: the URL is signed already."
            )
        expires = request.query.get("expires", "")
        signature = request.query.get("signature", "").encode(errors="replace")
        if not hmac.compare_digest(signature, self._signature(request.path, expires).encode()):
            return _error(403, "SignatureDoesNotMatch", "The signature is missing or wrong.")
        if self._now() >= int(expires):
            return _error(403, "AccessDenied", "Request has expired.")
        return None

    def _signature(self, path: str, expires: str) -> str:
        signed = f"{path}\n{expires}".encode(errors="replace")
        return hmac.digest(self._key, signed, hashlib.sha256).hex()


def _error(status: int, code: str, message: str) -> web.Response:
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    text = f"{head}\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return web.Response(text=text, status=status, content_type="application/xml")
