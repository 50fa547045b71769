"""Which interface of the host belongs to which attachment, and what an attachment is called whose interface is all
that is known of it."""

from __future__ import annotations

from functools import lru_cache

from cni_shim.names import host_ifname
from ipamd.pool.model import AttachmentKey


# The hash is made byte by byte in Python, and asked for several times in an attachment's life. Nodes hold fewer pods.
@lru_cache(maxsize=1024)
def host_link(key: AttachmentKey) -> str:
    """The host's end of the attachment's veth pair."""
    return host_ifname(key.container_id, key.ifname) if key.network else key.container_id


def recovered_key(key: AttachmentKey) -> AttachmentKey:
    """The key of an attachment that was recovered from its host route, after the ledger was lost: its link is all
    that is known of it. No network has an empty name (`ipamd.api.cni`)."""
    return AttachmentKey("", host_link(key), "")
