"""The values for the text by which several replicas serve behind a balancer. Pure.

All requests of a project go to one replica, which the balancer finds by hashing the project's name.
The regular expressions of the text find that name in a path, as `proxy.gateway.route` does, without a
list of names: the second segment is a number for a project of an account, and ``v1`` for others.
"""

from __future__ import annotations

import math
from urllib.parse import urlsplit

from proxy.cli.snippets import portable
from proxy.config.settings import CallerSettings, ServerSettings, Settings
from proxy.secret import Secret

MONITOR = "monitor"
"""The caller whose key the probes, the balancer's checks and Prometheus send."""
_TEAM = "my-team"
"""A caller for a configuration that has none."""
_PUBLIC_URL = "https://csq-proxy.example.com"
_SECRETS = "/run/secrets/csq-proxy"
_DOMAIN = "csq-proxy.csq-proxy.svc.cluster.local"
"""The headless service ``csq-proxy`` in the namespace of the same name."""
_NOTES = {
    "contentsquare.ca_file": portable.IN_POD["contentsquare.ca_file"],
    "log.file": portable.IN_POD["log.file"],
    "server.state_dir": portable.IN_POD["server.state_dir"],
}
_SPARE_S = 10
"""Seconds that a balancer waits for an answer in addition to the proxy's own limits."""


def values(settings: Settings) -> dict[str, str]:
    """The values for the text ``gateway``."""
    vendor, hosts = settings.contentsquare, settings.server.allowed_hosts
    ours = _replica(settings)
    public = urlsplit(ours.server.public_url)
    return {
        "config_mounted": portable.config(ours, _SECRETS, _NOTES, indent=4),
        "kubectl_secrets": " ".join(
            f"--from-file={name}{'' if name == f'caller_{MONITOR}' else '=FILE'}"
            for name in portable.secret_names(ours)
        ),
        "public_url": ours.server.public_url,
        "public_port": str(public.port or (443 if public.scheme == "https" else 80)),
        "allowed_hosts": "".join(f"{host}," for host in hosts),
        "answer_s": str(math.ceil(vendor.queue_timeout + vendor.idle_timeout) + _SPARE_S),
        "domain": _DOMAIN,
        # Paths without a name, and without X-CSQ-Project, are the default project's.
        "default": settings.default_project or "-",
    }


def _replica(settings: Settings) -> Settings:
    """The settings of each replica: for callers elsewhere, with keys, and with tokens on first use."""
    server = settings.server
    callers = dict(settings.callers) or {_TEAM: CallerSettings(key=Secret("elsewhere"))}
    callers.setdefault(MONITOR, CallerSettings(key=Secret("elsewhere"), read_only=True))
    return settings.model_copy(
        update={
            "server": ServerSettings(
                host="0.0.0.0",  # noqa: S104 - callers are other computers; each needs a key
                port=server.port,
                public_url=server.public_url or _PUBLIC_URL,
                drain_timeout=server.drain_timeout,
                min_rate=server.min_rate,
                min_rate_after=server.min_rate_after,
                state_dir=server.state_dir,
            ),
            "projects": {
                # A token that is wanted from the start and can't be had makes each replica not ready: one
                # project's credentials would end the calls of all.
                name: project.model_copy(update={"port": 0, "apis": ()})
                for name, project in settings.projects.items()
            },
            "callers": callers,
        }
    )
