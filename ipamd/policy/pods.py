"""Which attachments concern the agent, and the name by which it looks for their links."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1

from ipamd.pool.model import Attachment

# What the kubelet calls the interface that a pod's address is on. The agent filters no other.
_INTERFACE = "eth0"
_PREFIX, _DIGITS = "eni", 11


@dataclass(frozen=True, slots=True)
class Pod:
    namespace: str
    name: str

    @property
    def link(self) -> str:
        """The name that the agent takes the host's end of the pod's veth pair to have (GetHostVethName in pkg/utils
        of aws-network-policy-agent)."""
        digest = sha1(f"{self.namespace}.{self.name}".encode(), usedforsecurity=False)
        return _PREFIX + digest.hexdigest()[:_DIGITS]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def pod_of(attachment: Attachment) -> Pod | None:
    """None for what is no pod of Kubernetes, or not its own interface."""
    owner = attachment.owner
    if attachment.key.ifname != _INTERFACE or not (owner.pod_namespace and owner.pod_name):
        return None
    return Pod(owner.pod_namespace, owner.pod_name)
