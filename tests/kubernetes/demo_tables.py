"""The tables of the demo on a cluster: its nodes, and where each pod's address comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class NodeLine:
    name: str
    type: str
    address: str
    runtime: str
    proxy: str
    ipamd: str


@dataclass(frozen=True, slots=True)
class PodLine:
    """`eni` and `link` are what the node's daemon says of the address that the API server has."""

    node: str
    pod: str
    address: str
    eni: str
    link: str


def nodes_table(nodes: Iterable[NodeLine]) -> Group:
    table = _table("node", "type", "address", "runs", "kube-proxy", "ipamd by")
    for node in nodes:
        table.add_row(node.name, node.type, node.address, node.runtime, node.proxy, node.ipamd)
    return _titled("Nodes", table)


def pods_table(pods: Sequence[PodLine]) -> Group:
    """Sorted by node, ENI and address; what repeats is said once."""
    table = _table("node", "ENI", "link", "address", "pod")
    before = PodLine("", "", "", "", "")
    for pod in sorted(pods, key=lambda pod: (pod.node, pod.link, _number(pod.address))):
        same_node = pod.node == before.node
        same_eni = same_node and pod.eni == before.eni
        table.add_row(
            "" if same_node else pod.node,
            "" if same_eni else pod.eni,
            "" if same_eni else pod.link,
            pod.address,
            pod.pod,
        )
        before = pod
    return _titled("Where each pod's address comes from", table)


def _number(address: str) -> tuple[int, ...]:
    return tuple(int(part) for part in address.split(".") if part)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _titled(title: str, table: Table) -> Group:
    return Group(Text(title, style="bold"), table)
