"""Valid settings that are perhaps a mistake: `ipamd config check` names them, and nothing else cares."""

from __future__ import annotations

import grp
from collections.abc import Iterator

from ipamd.neighbours.chain import PLUGIN, absent, folder_of_plugins
from ipamd.settings import MOST_ENIS, CniSettings, Settings


def doubts(settings: Settings) -> Iterator[str]:
    pool, host = settings.pool, settings.host
    if pool.max_pods and pool.warm_ips >= pool.max_pods and not pool.warm_enis:
        yield (
            f"pool.warm_ips {pool.warm_ips} is no less than pool.max_pods {pool.max_pods}: all addresses are "
            "taken from the start, and none is ever given back"
        )
    if pool.max_pods and pool.minimum_ips > pool.max_pods:
        yield f"pool.minimum_ips {pool.minimum_ips} is more than pool.max_pods {pool.max_pods}, which it is cut to"
    if pool.warm_enis and "warm_ips" in pool.model_fields_set:
        yield f"pool.warm_ips {pool.warm_ips} has no effect: pool.warm_enis {pool.warm_enis} takes its place"
    if pool.warm_enis and pool.max_enis and pool.warm_enis >= pool.max_enis:
        yield f"pool.warm_enis {pool.warm_enis} is no less than pool.max_enis {pool.max_enis}: pods leave less free"
    if not (pool.warm_ips or pool.warm_enis or pool.minimum_ips):
        yield "nothing is kept warm: every pod waits for EC2, a second or more"
    if pool.cooldown < 10:
        yield (
            f"pool.cooldown {pool.cooldown:g}: a peer that still sends to a pod that is gone, such as a load "
            "balancer that has not noticed, reaches the next pod with that address"
        )
    if pool.release_delay < 60:
        yield f"pool.release_delay {pool.release_delay:g}: each lull gives back what is soon asked for again"
    if pool.allocate_wait > 62:
        yield f"pool.allocate_wait {pool.allocate_wait:g}: the plugin gives up after 65 s, 3 of them to undo an ADD"
    if (reuse := min(pool.cooldown, pool.reuse_cooling_after)) >= pool.allocate_wait:
        yield (
            f"pool.allocate_wait {pool.allocate_wait:g}: an address is used again {reuse:g} s after its release at "
            "the soonest, so on a full node no ADD waits for the end of a pod"
        )
    if host.mtu and host.pod_mtu > host.mtu:
        yield f"host.pod_mtu {host.pod_mtu} is more than host.mtu {host.mtu}: larger packets are lost or cut up"
    room = host.mark_mask // (host.mark_mask & -host.mark_mask)
    if room < min(MOST_ENIS, (pool.max_enis or MOST_ENIS + 1) - 1):
        yield f"host.mark_mask {host.mark_mask:#x} has room for {room} ENIs beside the primary one"
    if settings.api.read_group and not _is_group(settings.api.read_group):
        yield f"api.read_group {settings.api.read_group}: there is no such group on this host"
    if not (host.sysctl_dir / "ipv4").is_dir():
        yield f"host.sysctl_dir {host.sysctl_dir}: the kernel's network settings are not there on this host"
    yield from _chain(settings.cni)
    if not host.snat and host.snat_exclude:
        yield "host.snat_exclude has no effect: host.snat is false"
    if settings.metrics.listen.rpartition(":")[0] in ("0.0.0.0", "[::]", "::"):
        yield f"metrics.listen {settings.metrics.listen}: everybody who reaches the node can read it, pods included"
    if not str(settings.ledger.path).startswith("/run/"):
        yield f"ledger.path {settings.ledger.path} is on a disk: each commit waits for it (0.04 ms in /run)"


def _chain(cni: CniSettings) -> Iterator[str]:
    """A node may well do without the default."""
    folder = folder_of_plugins(cni.bin_dirs)
    if "chain" in cni.model_fields_set and cni.chain and folder is None:
        yield f"cni.chain: no folder of cni.bin_dirs has {PLUGIN} on this host, so nothing is chained after it"
    elif "chain" in cni.model_fields_set and folder is not None:
        for name in absent(cni.chain, folder):
            yield f"cni.chain: {name} is not in {folder} on this host, and is left out"


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except (KeyError, ValueError):
        return False
    return True
