"""What stands below the options in ``--help`` and in the manual page, for the commands that need it."""

from __future__ import annotations

OF_EXPORT = """\
The FILE of --job holds, for example:

{"name": "A day", "format": "CSV", "scope": "sessions", "fields": [{"fieldName": "session_id"},
{"fieldName": "session_time"}], "frequency": {"value": "once", "dateRange": {"from": "2026-05-01",
"to": "2026-05-02"}}}

GET /PROJECT/v1/exportable-fields lists the fields, and GET /PROJECT/v1/exports the jobs that exist.
"""
OF_SANDBOX = """\
Its data are made up: the same request has the same answer, whatever the seed. Speed Analysis takes
2026-01-01 for today. With --lenient, a token request may also have ids as digits and no scope. JSON
schemas of the answers are in the package, in sandbox/schemas.

A new export job (POST /v1/exports) may have, beyond Contentsquare's parameters: rows (1000), files (3,
that the rows are divided between), compression (gzip, or none), and cutAfter (bytes of content after
which each download ends too early; the rest can be had with Range). Files of more than 4000 rows have the
same rows again.
"""
