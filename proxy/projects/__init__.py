"""The state that lasts between requests: `project` is the face of one project.

`leases`, `discovery`, `grant`, `renewals` are about its tokens, `slots` and `uploads` about its concurrency,
`shared_answers` and `stored` about its answers; `measures` counts. `accounts` holds projects made on demand.
"""

from proxy.projects.accounts import AccountProjects
from proxy.projects.grant import Grant
from proxy.projects.measures import ProjectMeasures
from proxy.projects.project import Project
from proxy.projects.services import Services, Spawn
from proxy.projects.slots import SharedSlots, Slots
from proxy.projects.turns import Turn

__all__ = [
    "AccountProjects",
    "Grant",
    "Project",
    "ProjectMeasures",
    "Services",
    "SharedSlots",
    "Slots",
    "Spawn",
    "Turn",
]
