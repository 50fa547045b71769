"""ENIs and pods of the node beside what it could have and what limits that: for `status` and `top`."""

from __future__ import annotations

from ipamd.api.v1 import introspection_pb2 as pb


def enis_and_pods(node: pb.Node) -> str:
    """For instance "1 of 3 (type m5.large; pool.max_enis not set), 9 addresses each; pods 4 of 27"."""
    slots, targets = node.slots, node.targets
    others = f", {slots.foreign} of them somebody else's" if slots.foreign else ""
    limited = " (pool.max_pods)" if slots.pod_limit and slots.pod_limit == targets.max_pods else ""
    each = f"{node.addresses_per_eni} address{'' if node.addresses_per_eni == 1 else 'es'} each"
    return (
        f"{slots.enis} of {targets.max_enis} ({_bound(node)}){others}, {each}; "
        f"pods {node.counts.assigned} of {targets.max_pods}{limited}"
    )


def _bound(node: pb.Node) -> str:
    slots, most = node.slots, node.targets.max_enis
    by_type = f"type {node.instance_type}"
    if slots.eni_limit and slots.eni_limit == most:
        return f"pool.max_enis; {by_type} has {node.max_enis}"
    if most < node.max_enis:
        return f"EC2 refuses more; {by_type} has {node.max_enis}"
    return f"{by_type}; pool.max_enis {slots.eni_limit or 'not set'}"
