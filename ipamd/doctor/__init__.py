"""Preflight: what on this host will keep pods from working, found before they do, each with its remedy.

Facts are gathered once (`facts`); each check is a small pure function over them. It needs no running daemon.
"""

from collections.abc import Iterator

from ipamd.doctor import chained, cloud, kernel, managers, metadata, neighbours, node
from ipamd.doctor.facts import Facts, gather
from ipamd.doctor.report import Finding, State, exit_code

CHECKS = (
    *kernel.CHECKS,
    *neighbours.CHECKS,
    *managers.CHECKS,
    *metadata.CHECKS,
    *cloud.CHECKS,
    *node.CHECKS,
    *chained.CHECKS,
)


def examine(facts: Facts) -> Iterator[Finding]:
    """Every check's findings; each check has at least one."""
    for check in CHECKS:
        yield from check(facts)


__all__ = ["CHECKS", "Facts", "Finding", "State", "examine", "exit_code", "gather"]
