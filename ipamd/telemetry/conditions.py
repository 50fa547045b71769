"""What is wrong now and not with the main job: kept until it is over, for `status`, metrics and alerts.

An event tells that something happened and is soon forgotten. A settings file that can't be read, a port that is taken
or a watch that could not be made last, and nothing else shows them. None of them ends the daemon: who meets one
calls `begin`, goes on with a fallback, and calls `end` once it is over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from ipamd.pool.quoting import cut

log = structlog.get_logger("ipamd.conditions")


@dataclass(frozen=True, slots=True)
class Kind:
    """`meaning` is a phrase for the pages and the metric; `level` is the level of the event at its beginning."""

    level: Literal["warning", "error"]
    meaning: str


# By name, worst first: the order in which they are shown. The name is also that of the event at the beginning.
KINDS: Mapping[str, Kind] = {
    "api.not_served": Kind("error", "`api.socket` was removed or replaced, and can't be served: tried again"),
    "settings.rejected": Kind("error", "the settings on disk can't be used, or their file is gone"),
    "serving.unrecorded": Kind(
        "error", "the record that this node serves can't be written; without it a restart shows as a node not ready"
    ),
    "conflist.not_written": Kind(
        "error", "the runtime's network configuration can't be written to `cni.conf_dir`: tried again"
    ),
    "conflist.not_in_force": Kind(
        "error", "runtimes take another network configuration than ipamd's, or ipamd's is gone"
    ),
    "policy.not_enforced": Kind(
        "error", "`policy.mode` is set, and AWS's network policy agent does not answer or refuses: tried again"
    ),
    "policy.not_served": Kind(
        "error", "the socket in `policy.dir` that AWS's network policy agent asks at can't be served: tried again"
    ),
    "spool.unusable": Kind(
        "error", "the folder of DELs can't be used, or files in it are no DELs or can't be removed: tried again"
    ),
    "host.not_watched": Kind("error", "the node's network is not watched and not repaired: tried again"),
    "host.links_left": Kind("error", "the interfaces of gone pods are not removed: tried again"),
    "api.readers_not_served": Kind("error", "the group `api.read_group` can't be served at `api.read_socket`"),
    "metrics.not_served": Kind("error", "the address of `metrics.listen` can't be served"),
    "credentials.not_renewed": Kind("warning", "EC2 still takes the credentials, and the next ones can't be found"),
    "ec2.strange_interface": Kind("warning", "an interface of somebody else that EC2 describes in no usable way"),
    "conflist.plugins_left_out": Kind(
        "warning", "plugins of `cni.chain` are not in the conflist: they are not there, or can't work"
    ),
    "iam.unexamined": Kind("warning", "the dry run of the role's permissions failed"),
    "settings.need_restart": Kind("warning", "settings changed that take effect with the next start"),
    "settings.polled": Kind(
        "warning", "the kernel does not tell of changes to the settings file: it is looked at every 30 s"
    ),
    "settings.not_followed": Kind("warning", "changes of the settings file take no effect: tried again"),
    "spool.polled": Kind("warning", "the kernel does not tell of new DELs in the spool: it is looked at every 5 s"),
    "conflist.polled": Kind(
        "warning", "the kernel does not tell of changes in `cni.conf_dir`: it is looked at every 30 s"
    ),
    "conflist.not_followed": Kind("warning", "whether the conflist is the one that runtimes take is not known"),
    "vpc.subnet_outside": Kind(
        "warning",
        "this node has an ENI in a subnet outside of the CIDRs that the metadata service gives for the VPC",
    ),
    "host.shared": Kind("warning", "others on this host use a number or a name of ours: pods work, or bear it"),
    "tracing.off": Kind("warning", "`tracing.endpoint` is set and no trace is sent"),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """`text`: what is wrong and what to do about it, in sentences. `since`: seconds since the epoch."""

    name: str
    text: str
    since: float


class Conditions:
    """For the thread of the event loop alone."""

    def __init__(self) -> None:
        self._now: dict[str, Condition] = {}

    def begin(self, name: str, text: str, **fields: Any) -> None:
        """Say it once: the same text again is no event, another text is one and keeps the time of the beginning.
        `fields` go into the event. Raises KeyError when `name` is not in `KINDS`."""
        level, text = KINDS[name].level, cut(text)
        known = self._now.get(name)
        if known is not None and known.text == text:
            return
        self._now[name] = Condition(name, text, time.time() if known is None else known.since)
        getattr(log, level)(name, text=text, **fields)

    def end(self, name: str) -> None:
        """It is over, or never was."""
        if (known := self._now.pop(name, None)) is not None:
            log.info("condition.ended", condition=name, lasted=round(time.time() - known.since, 1))

    def active(self) -> list[Condition]:
        """Worst first."""
        return [self._now[name] for name in KINDS if name in self._now]
