"""The node itself: what the daemon and its pods live on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cni_shim.names import SPOOL
from ipamd.cloud.limits import limits_of
from ipamd.doctor.facts import Facts
from ipamd.doctor.report import Finding, fail, note, ok, warn
from ipamd.neighbours.kubelet import HOST_NETWORK_PODS, fitting
from ipamd.settings import Settings

_MIB = 1 << 20
# Of the ledger's file system. A ledger with 700 pods takes less than a MiB, its journal up to 4.
_TOO_LITTLE, _LITTLE = 1 * _MIB, 16 * _MIB
# Shares of the table of tracked connections. A full one drops the first packet of each new connection.
_NEARLY_FULL, _FULL = 0.8, 0.97


def metrics_port(facts: Facts) -> Iterator[Finding]:
    check = "metrics port"
    listen, node = facts.settings.metrics.listen, facts.node
    if not listen:
        yield ok(check, "metrics.listen is empty: nothing is served")
    elif node.port_is_ours:
        yield ok(check, f"{listen} is the daemon's")
    elif node.port_owner:
        remedy = "stop that, or set metrics.listen to another port (the AWS VPC CNI uses 61678, too)"
        yield warn(check, f"{listen} is taken by {node.port_owner}: no metrics, and no probe succeeds", remedy)
    else:
        yield ok(check, f"{listen} is free")


def plugin(facts: Facts) -> Iterator[Finding]:
    check = "CNI plugin"
    path, found = facts.node.plugin_path, facts.node.plugin
    renew = facts.node.hosting.install
    if path is None:
        yield note(check, "could not tell: no folder for CNI plugins is seen from here")
        return
    if found is None:
        yield fail(check, f"{path} is not there: runtimes can't call it", renew)
        return
    if found.problem:
        yield fail(check, f"{path} {found.problem}", renew)
        return
    settings = found.settings
    if settings is not None and settings.socket != str(facts.settings.api.socket):
        words = f"--socket {facts.settings.api.socket}"
        remedy = (
            f"give the DaemonSet's init container {words}"
            if facts.node.hosting.daemon_set
            else f"ipamd install {words}"
        )
        yield fail(check, f"{path} calls {settings.socket}, but api.socket is {facts.settings.api.socket}", remedy)
    elif settings is not None and (elsewhere := _spool_elsewhere(settings.spool_dir, facts.settings)):
        yield warn(check, f"{path} {elsewhere}", f"set cni.spool_dir to {settings.spool_dir}, or: {renew}")
    elif found.current:
        yield ok(check, f"{path} is of this version, and calls api.socket")
    elif found.current is None:
        yield note(check, f"{path} does not tell its version", f"to put this one's there: {renew}")
    else:
        yield warn(check, f"{path} is of another version than this ipamctl", renew)


def _spool_elsewhere(spool_dir: str, settings: Settings) -> str:
    """Empty: the daemon looks where the plugin leaves DELs. It looks beside its socket, too."""
    if Path(spool_dir) in (settings.cni.spool_dir, settings.api.socket.parent / SPOOL):
        return ""
    return f"leaves DELs in {spool_dir} while the daemon is away, and the daemon looks in {settings.cni.spool_dir}"


def ledger_space(facts: Facts) -> Iterator[Finding]:
    check = "ledger's disk"
    path, free = facts.settings.ledger.path, facts.node.ledger_free
    remedy = f"make room on the file system of {path}, or set ledger.path"
    if free is None:
        yield note(check, f"could not tell: no folder above {path} can be read")
    elif facts.node.ledger_read_only:
        yield fail(check, f"the file system of {path} is read-only: no pod gets an address", remedy)
    elif free < _TOO_LITTLE:
        yield fail(check, f"{free // 1024} KiB free for {path}: no pod gets an address once it is full", remedy)
    elif free < _LITTLE:
        yield warn(check, f"{free // _MIB} MiB free for {path}", remedy)
    else:
        yield ok(check, f"{free // _MIB} MiB free for {path}")


def tracked_connections(facts: Facts) -> Iterator[Finding]:
    check = "connection table"
    if facts.node.tracked is None:
        yield ok(check, "the kernel tracks no connections here yet")
        return
    count, most = facts.node.tracked
    share = count / most if most else 0.0
    found = f"{count} of {most} tracked connections"
    remedy = f"sysctl -w net.netfilter.nf_conntrack_max={max(most, count) * 2}, and a file in /etc/sysctl.d"
    if share >= _FULL:
        yield fail(check, f"{found}: new connections of pods are dropped", remedy)
    elif share >= _NEARLY_FULL:
        yield warn(check, found, remedy)
    else:
        yield ok(check, found)


def max_pods(facts: Facts) -> Iterator[Finding]:
    """What the kubelet tells the scheduler against what there are addresses for."""
    check = "kubelet's max-pods"
    kubelet, identity = facts.node.kubelet, facts.cloud.identity
    limits = limits_of(identity.instance_type) if identity is not None else None
    if kubelet is None:
        yield ok(check, "no kubelet is seen from here")
        return
    if identity is None or limits is None:
        yield note(check, f"{kubelet.max_pods} ({kubelet.origin}); could not tell what this node has addresses for")
        return
    pool = facts.settings.pool
    pods = min(limits.max_enis, pool.max_enis or limits.max_enis) * limits.secondary_per_eni
    pods = min(pods, pool.max_pods or pods)
    fits = fitting(pods)
    found = f"{kubelet.max_pods} ({kubelet.origin}); {identity.instance_type} has addresses for {pods} pods here"
    if kubelet.beyond(pods):
        yield warn(
            check,
            f"{found}: those beyond wait for an address, and the scheduler sends them all the same",
            f"set maxPods: {fits} in the kubelet's configuration ({HOST_NETWORK_PODS} for pods on the host's "
            "network; more if there are more of them)",
        )
    else:
        yield ok(check, found)


CHECKS = (metrics_port, plugin, ledger_space, tracked_connections, max_pods)
