"""A token that is kept fresh.

`endpoint` requests it, `breaker` holds requests back in an outage, `answer` reads the answer, `schedule` says
when it is due, `keeper` holds and refreshes the `lease`, `record` has its errors, `standby` switches pairs.
"""

from proxy.tokens.clock import SYSTEM_CLOCK, Clock, SuspendWatch, SystemClock
from proxy.tokens.endpoint import TokenEndpoint, TokenRequest, make_session
from proxy.tokens.keeper import LeaseKeeper
from proxy.tokens.lease import Lease, LeaseStatus

__all__ = [
    "SYSTEM_CLOCK",
    "Clock",
    "Lease",
    "LeaseKeeper",
    "LeaseStatus",
    "SuspendWatch",
    "SystemClock",
    "TokenEndpoint",
    "TokenRequest",
    "make_session",
]
