"""The storage host: export files behind presigned URLs, as S3 answers them.

A URL is good for GET alone: any other method, HEAD too, gets 403 because its signature would be another one.
A request needs no bearer token, and a request with an Authorization field is refused, so that a program that
leaks its token to storage notices. Answers have Content-Length, ETag, Last-Modified and Accept-Ranges; one
range and the conditional fields are understood (RFC 9110, sections 13 and 14). Errors are XML.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import urlencode
from xml.sax.saxutils import escape

from aiohttp import web

from proxy.contentsquare import FILES_LIVE_S
from proxy.sandbox.files import Content, ExportFile
from proxy.sandbox.wire import send_pieces

_KEPT = 8
"""Files whose bytes are kept ready."""
_ALGORITHM = "AWS4-HMAC-SHA256"
_DATE = "%Y%m%dT%H%M%SZ"
_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class _S3Error(Exception):
    """Becomes an error answer; ``more`` are further elements and their texts."""

    def __init__(self, status: int, code: str, message: str, **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.elements = {"Code": code, "Message": message, **more}


class Storage:
    """Signs files' URLs, and answers requests for them; ``base_url`` is set once it listens."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.base_url = ""
        self._now = now
        self._key = secrets.token_bytes(32)
        self._files: dict[str, ExportFile] = {}
        self._ready: dict[ExportFile, Content] = {}
        self._requests = 0

    def sign(self, file: ExportFile) -> str:
        """A URL for the file, good until the file expires, at the latest for 7 days."""
        self._files[file.path] = file
        now = self._now()
        # The URL of an expired file is one that has expired, too.
        since = now if now < file.expires_at - 1 else file.expires_at - FILES_LIVE_S
        signed = {
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": "SANDBOX/eu-west-1/s3/aws4_request",
            "X-Amz-Date": datetime.fromtimestamp(since, UTC).strftime(_DATE),
            "X-Amz-Expires": str(int(file.expires_at - since)),
            "X-Amz-SignedHeaders": "host",
        }
        query = urlencode({**signed, "X-Amz-Signature": self._signature(file.path, signed)})
        return f"{self.base_url}{file.path}?{query}"

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Sends the file or a part of it, or an error in XML."""
        self._requests += 1
        try:
            self._check(request)
            file = self._files[request.path]
            fields = {
                "ETag": file.etag,
                "Last-Modified": formatdate(int(file.made_at), usegmt=True),
                "Accept-Ranges": "bytes",
            }
            if _is_unchanged(request, file):
                return web.Response(status=304, headers=fields)
            content = await self._content(file)
            asked = _part(request, file, content.size)
        except _S3Error as error:
            return self._error(error)
        if asked is not None:
            fields["Content-Range"] = f"bytes {asked.start}-{asked.stop - 1}/{content.size}"
        part = asked or range(content.size)
        return await send_pieces(
            request,
            content.pieces(part.start, part.stop),
            status=206 if asked else 200,
            content_type=file.content_type,
            length=len(part),
            fields=fields,
            cut_after=file.cut_after,
        )

    async def _content(self, file: ExportFile) -> Content:
        content = self._ready.pop(file, None)
        if content is None:
            content = await asyncio.to_thread(file.content)
        self._ready[file] = content
        if len(self._ready) > _KEPT:
            del self._ready[next(iter(self._ready))]
        return content

    def _check(self, request: web.BaseRequest) -> None:
        """Raises _S3Error where the request isn't one that the URL was signed for."""
        if "Authorization" in request.headers:
            raise _S3Error(
                400,
                "InvalidArgument",
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query"
                " string parameter or the Authorization header should be specified",
                ArgumentName="Authorization",
            )
        signed = dict(request.query)
        signature = signed.pop("X-Amz-Signature", None)
        if signature is None:
            raise _S3Error(403, "AccessDenied", "Access Denied")
        expected = self._signature(request.path, signed)
        if request.method != "GET" or not hmac.compare_digest(
            signature.encode("utf-8", "replace"), expected.encode()
        ):
            raise _S3Error(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided."
                " Check your key and signing method.",
            )
        since = datetime.strptime(signed["X-Amz-Date"], _DATE).replace(tzinfo=UTC).timestamp()
        until = since + int(signed["X-Amz-Expires"])
        if self._now() >= until:
            raise _S3Error(
                403,
                "AccessDenied",
                "Request has expired",
                **{"X-Amz-Expires": signed["X-Amz-Expires"], "Expires": _iso(until)},
                ServerTime=_iso(self._now()),
            )

    def _signature(self, path: str, signed: Mapping[str, str]) -> str:
        text = f"GET\n{path}\n{urlencode(sorted(signed.items()), errors='replace')}"
        return hmac.digest(self._key, text.encode(errors="replace"), hashlib.sha256).hex()

    def _error(self, error: _S3Error) -> web.Response:
        number = f"{self._requests:016X}"
        elements = {**error.elements, "RequestId": number, "HostId": "csq-proxy-sandbox"}
        text = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in elements.items())
        response = web.Response(
            text=f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{text}</Error>',
            status=error.status,
            content_type="application/xml",
            headers={"x-amz-request-id": number},
        )
        if error.status == 416:
            response.headers["Content-Range"] = f"bytes */{error.elements['ActualObjectSize']}"
        return response


def _part(request: web.BaseRequest, file: ExportFile, size: int) -> range | None:
    """The bytes that are asked for, never none; None: all, and not as a range. Raises _S3Error 416."""
    text = request.headers.get("Range", "")
    match = _ONE_RANGE.fullmatch(text)
    condition = request.headers.get("If-Range")
    # As RFC 9110, section 14.2, has it, a Range that isn't understood is ignored; so does S3 with several.
    if not match or match.groups() == ("", "") or condition not in (None, file.etag, _made(file)):
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    if first and last and int(last) < int(first):
        return None
    if start >= size:
        raise _S3Error(
            416,
            "InvalidRange",
            "The requested range is not satisfiable",
            RangeRequested=text,
            ActualObjectSize=size,
        )
    return range(start, stop)


def _is_unchanged(request: web.BaseRequest, file: ExportFile) -> bool:
    """Whether the caller has this file already (RFC 9110, section 13.2.2). Raises _S3Error 412."""
    headers = request.headers
    made_at, latest = int(file.made_at), _moment(headers.get("If-Unmodified-Since"))
    if "If-Match" in headers:
        if not _names(headers["If-Match"], file.etag):
            raise _precondition_failed("If-Match")
    elif latest is not None and made_at > latest:
        raise _precondition_failed("If-Unmodified-Since")
    if "If-None-Match" in headers:
        return _names(headers["If-None-Match"], file.etag)
    since = _moment(headers.get("If-Modified-Since"))
    return since is not None and made_at <= since


def _precondition_failed(name: str) -> _S3Error:
    message = "At least one of the pre-conditions you specified did not hold"
    return _S3Error(412, "PreconditionFailed", message, Condition=name)


def _names(tags: str, etag: str) -> bool:
    return tags.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in tags.split(","))


def _moment(date: str | None) -> float | None:
    """The Unix time of an HTTP date; None for none and for text that is none."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None


def _made(file: ExportFile) -> str:
    return formatdate(int(file.made_at), usegmt=True)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
