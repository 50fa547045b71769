"""Measures how long a pod went without an address, from its first try on.

Kubelet answers a refused ADD with a new sandbox and a new ADD: each of them may fail quickly while the pod waits for
minutes. So tries belong together by the pod's name if the runtime gives one, else by the container's id.
"""

from __future__ import annotations

from collections import OrderedDict

from ipamd.pool.model import AttachmentKey, Owner
from ipamd.telemetry.histogram import SECONDS, Histogram

# Most pods to remember while they have no address; beyond it the oldest are forgotten. A pod that comes back after an
# hour counts as new.
REMEMBERED = 1000
FORGOTTEN_AFTER = 3600.0


class FirstTries:
    """`waits`: seconds from the first try to the grant, of each attachment that was granted. `now` is in seconds of a
    clock that never goes back."""

    def __init__(self) -> None:
        self.waits = Histogram(SECONDS)
        self._since: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def begun(self, key: AttachmentKey, owner: Owner, now: float) -> None:
        while self._since and (
            len(self._since) >= REMEMBERED or next(iter(self._since.values())) < now - FORGOTTEN_AFTER
        ):
            self._since.popitem(last=False)
        self._since.setdefault(_identity(key, owner), now)

    def granted(self, key: AttachmentKey, owner: Owner, now: float) -> None:
        since = self._since.pop(_identity(key, owner), None)
        if since is not None:
            self.waits.observe(now - since)


def _identity(key: AttachmentKey, owner: Owner) -> tuple[str, ...]:
    who = (owner.pod_namespace, owner.pod_name, owner.pod_uid) if owner.pod_name else (key.container_id,)
    return (key.network, key.ifname, *who)
