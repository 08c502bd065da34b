"""HTTP/1.1 message syntax (RFC 9112), without sockets: heads, fields, chunked framing."""
