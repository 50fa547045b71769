"""Other networks on this host: what of them is in the way, and what just lives beside us."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from ipamd.doctor.facts import Facts
from ipamd.doctor.report import Finding, fail, note, ok, warn
from ipamd.host import owners
from ipamd.host.clashes import Weight
from ipamd.host.vpc_cni import AGENT, is_its_socket
from ipamd.install import network_files
from ipamd.install.files import CONFLIST

# Software that gives pods a network, as `owners` calls it.
VPC_CNI = "AWS VPC CNI"
_NETWORKS = (VPC_CNI, "Calico", "Cilium", "flannel", "Weave Net")

# Those that also only enforce network policies, on the links of another network; and the links that they have then.
_ENGINES = ("Calico", "Cilium")
_ENGINES_LINKS = {"cilium_host", "cilium_net", "lxc_health"}

_MAIN = 254


def clashes(facts: Facts) -> Iterator[Finding]:
    """What the daemon refuses to start for, and, as a warning, what pods work beside."""
    check = "clashes"
    for clash in facts.clashes:
        owner = f" (probably {clash.owner})" if clash.owner else ""
        found = warn if clash.weight is Weight.SHARED else fail
        yield found(check, f"{clash.what}{owner}", clash.remedy)
    if not facts.clashes and not facts.unreadable:
        yield ok(check, "nobody else uses our tables, priorities, mark bits, groups or nft table")


def other_networks(facts: Facts) -> Iterator[Finding]:
    check = "other pod networks"
    seen: dict[str, list[str]] = {}
    networks = set()
    for link in facts.links:
        owner = owners.of_link(link.name)
        seen.setdefault(owner, []).append(f"link {link.name}")
        if link.name not in _ENGINES_LINKS:
            networks.add(owner)
    for chain in facts.chains:
        seen.setdefault(owners.of_chain(chain.table, chain.name), []).append(f"chain {chain.name}")
    found = [(name, seen[name]) for name in _NETWORKS if name in seen]
    for name, signs in found:
        more = f" and {len(signs) - 1} more" if len(signs) > 1 else ""
        remedy = "its pods go on working; when the last is gone, remove it and what it left (a reboot does)"
        if name == VPC_CNI:
            remedy = "once its pods and its daemon are gone: ipamctl cleanup vpc-cni"
        elif name in _ENGINES and name not in networks:
            more += ", and no link of a pod"
            remedy = (
                "nothing, if it enforces network policies beside ipamd (docs/network-policy.md); else remove it and "
                "what it left (a reboot does)"
            )
        yield note(check, f"{name}: {signs[0]}{more}", remedy)
    if not found:
        yield ok(check, "no sign of another one")


def vpc_cni(facts: Facts) -> Iterator[Finding]:
    """Both the AWS VPC CNI and ipamd claim the primary ENI and every ENI that they are not configured to leave: with
    both on a node, two pods get one address."""
    check = VPC_CNI
    own = {str(facts.settings.policy.socket)} if facts.settings.policy.mode != "off" else set()
    sockets = facts.sockets - own  # which is AWS's network policy agent's to ask at
    agent = AGENT in facts.processes or any(map(is_its_socket, sockets))
    if agent:
        yield fail(
            check,
            "its daemon (aws-node) runs on this node: both give out the same addresses",
            "keep aws-node off this node (docs/eks.md), and delete its pods here before ipamd starts",
        )
    pods = _vpc_cni_pods(facts)
    if pods:
        many = "1 pod has its" if len(pods) == 1 else f"{len(pods)} pods have their"
        yield fail(
            check,
            f"{many} address from it: {', '.join(pods[:3])}{', ...' if len(pods) > 3 else ''}",
            "drain the node, delete what is left of its pods (kubectl get pods -o wide), and look again; until then "
            "ipamd grants none of these addresses",
        )
    if not agent and not pods:
        yield ok(check, "neither its daemon nor a pod of it is on this node")


def policy_agent(facts: Facts) -> Iterator[Finding]:
    check = "network policy agent"
    mode, socket = facts.settings.policy.mode, facts.settings.policy.agent
    if mode == "off":
        yield ok(check, "policy.mode is off: no pod depends on AWS's agent")
    elif any(path.endswith(f"/{socket.name}") for path in facts.sockets):
        yield ok(check, f"it listens, and policy.mode is {mode}")
    else:
        found = f"policy.mode is {mode}, and nobody listens at {socket.name} in {socket.parent}"
        remedy = 'start it on this node (docs/network-policy.md), or set policy.mode = "off"'
        troubled = fail if mode == "strict" else warn
        what = "no pod can start" if mode == "strict" else "no policy is enforced"
        yield troubled(check, f"{found}: {what}", remedy)


def _vpc_cni_pods(facts: Facts) -> list[str]:
    """Addresses that a route leads to one of its links for; a rule that is left alone has no pod."""
    links = {link.index for link in facts.links if owners.of_link(link.name) == VPC_CNI and link.kind == "veth"}
    found = {
        route.destination.removesuffix("/32")
        for route in facts.routes
        if route.table == _MAIN and route.index in links and route.destination.endswith("/32")
    }
    return sorted(found, key=lambda ip: IPv4Address(ip))


def conflists(facts: Facts) -> Iterator[Finding]:
    """A runtime takes the first file in the order of names (containerd and CRI-O: max_conf_num 1)."""
    check = "CNI configuration"
    folder = facts.settings.cni.conf_dir
    if folder is None:
        yield note(check, "cni.conf_dir is empty: the daemon writes no configuration")
        return
    below = facts.root / folder.relative_to("/")
    before, after = network_files.others(below)
    if before:
        remedy = f"once its pods are gone: mv {folder / before[0]} {folder / before[0]}.off"
        yield fail(check, f"{', '.join(before)} in {folder} comes before {CONFLIST}: runtimes use that", remedy)
    elif after and not (below / CONFLIST).exists():
        found = f"{', '.join(after)} in {folder}: runtimes use it until the daemon can serve and writes {CONFLIST}"
        yield warn(check, found, f"mv {folder / after[0]} {folder / after[0]}.off")
    else:
        yield ok(check, f"nothing in {folder} comes before {CONFLIST}")


CHECKS = (clashes, vpc_cni, other_networks, policy_agent, conflists)
