"""The codings in which a secret may stand in a text."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from urllib.parse import quote

CODINGS: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "upper": str.upper,
    "lower": str.lower,
    "quote": lambda text: quote(text, safe=""),
    "every-character": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "every-lower": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "twice": lambda text: quote(quote(text, safe=""), safe=""),
    "thrice": lambda text: quote(quote(quote(text, safe=""), safe=""), safe=""),
    "five-times": lambda text: "".join(f"%25252525{byte:02x}" for byte in text.encode()),
    "json-quoted": lambda text: "".join(f"%5Cu{ord(char):04x}" for char in text),
    "javascript": lambda text: "".join(f"\\x{ord(char):02x}" for char in text),
    "html": html.escape,
    "entities-quoted": lambda text: quote("".join(f"&#{ord(char)};" for char in text)),
    "base64-of-quoted": lambda text: base64.b64encode(f"id:{quote(text, safe='')}".encode()).decode(),
    "percent-u": lambda text: "".join(f"%u{ord(char):04X}" for char in text),
    "json": lambda text: "".join(f"\\u{ord(char):04x}" for char in text),
    "quoted-pairs": lambda text: "".join(f"\\{char}" for char in text),
    "entities": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "entities-hex": lambda text: "".join(f"&#x{ord(char):x};" for char in text),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64-url": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64-user": lambda text: base64.b64encode(f"u:{text}".encode()).decode(),
    "base64-longer": lambda text: base64.b64encode(f"ab:{text}:c".encode()).decode(),
    "base64-quoted": lambda text: quote(base64.b64encode(text.encode()).decode(), safe=""),
    "hex": lambda text: text.encode().hex(),
    "hex-upper": lambda text: text.encode().hex().upper(),
}
