"""Connections to the clouds.

`dial` (with `dns`, `tls`, `http_proxy`) opens a connection, `connection` carries one exchange at a time,
`parser` reads the answers, and `pool` keeps the connections of each origin.
"""
