"""Callers' connections.

`listeners` binds addresses, `site` accepts connections on them, `connection` carries the requests of one
caller, `parser` cuts its bytes into requests, `request` is one of them with its `body`.
"""
