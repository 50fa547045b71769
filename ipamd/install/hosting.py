"""Where this node's daemon runs, so that a remedy names what works there: a service of systemd, or a pod.

Within a pod the kubelet's variables say it. On the host the plugin's settings do: `ipamd install` left it there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Every container of a pod has it, also without service links (kubelet, envvars of the service "kubernetes").
_IN_POD = "KUBERNETES_SERVICE_HOST"

# deploy/kubernetes/ipamd.yaml.
LABEL = "app.kubernetes.io/name=ipamd"


@dataclass(frozen=True, slots=True)
class Hosting:
    """`daemon_set`: which of the two. `look`: what shows how the daemon is; `install`: what puts the plugin on the
    node again."""

    daemon_set: bool
    look: str
    install: str


SYSTEMD = Hosting(False, "systemctl status ipamd", "ipamd install")
DAEMON_SET = Hosting(
    True,
    f"DaemonSet: kubectl get pods -A -o wide -l {LABEL}",
    "delete the DaemonSet's pod of this node: the next one's init container runs ipamd install",
)


def in_pod(environ: Mapping[str, str] = os.environ) -> bool:
    return bool(environ.get(_IN_POD))


def hosting(environ: Mapping[str, str] = os.environ, plugin: Path | None = None) -> Hosting:
    """`plugin`: where it stands, by default the usual place. What can't be read counts as systemd's."""
    if in_pod(environ):
        return DAEMON_SET
    from ipamd.install.files import BIN_DIR
    from ipamd.install.installed import installed
    from ipamd.neighbours.chain import PLUGIN

    found = installed(plugin or BIN_DIR / PLUGIN)
    told = found is not None and found.settings is not None and found.settings.daemon_set
    return DAEMON_SET if told else SYSTEMD
