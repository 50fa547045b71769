"""What the AWS VPC CNI left on this host, told from what is only like it. Reads and changes nothing.

The forms are those that its sources write (amazon-vpc-cni-k8s v1.23, pkg/networkutils, cmd/routed-eni-cni-plugin):

    rule 512     to POD/32 lookup main           each pod
    rule 1024    fwmark 0x80/0x80 lookup main    replies of NodePorts
    rule 1535    to CIDR lookup main             each of AWS_EXTERNAL_SERVICE_CIDRS
    rule 1536    from POD/32 lookup T            each pod of a secondary ENI
    rule 32765   from ENI/32 lookup T            each secondary ENI
    table T      GW dev ENI scope link; default via GW dev ENI
    iptables     chains AWS-SNAT-CHAIN-n, AWS-CONNMARK-CHAIN-n, and rules that its comments mark
    nftables     table ip aws-cni
    links        a veth for each pod, eni and 11 hexadecimal digits

Priorities and table numbers are anybody's to use, so a rule counts only in exactly that form, for an address of this
node's subnets, and while something that nobody else makes (its chains, its table, its files) shows that it was here.
What is left of a pod that runs is no leftover: then nothing is removed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

MAIN = 254
POD_TO, MARKED, EXTERNAL, POD_FROM, ENI_FROM = 512, 1024, 1535, 1536, 32765
MARK = 0x80
# Its daemon's name as the kernel has it, and the socket where it serves (cmd/aws-k8s-agent, utils/sockets).
AGENT, SOCKET = "aws-k8s-agent", "run/aws-node/ipamd.sock"
CHAIN = re.compile(r"AWS-(SNAT|CONNMARK)-CHAIN-\d+")
VETH = re.compile(r"eni[0-9a-f]{11}")
BRANCH = re.compile(r"vlan\.eth\.\d+|vlan[0-9a-f]{11}")
NFT_TABLE, NFT_CHAINS = "aws-cni", {"nat-prerouting", "snat-mark"}
# (table, chain, comment) of its rules in chains that are not its own, except jumps to its chains.
MARKING = {
    ("nat", "PREROUTING", "AWS, CONNMARK"),
    ("mangle", "PREROUTING", "AWS, primary ENI"),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """`plain`: nothing but these fields selects. `raw` is the kernel's message."""

    priority: int
    table: int
    source: str = ""
    destination: str = ""
    mark: int = 0
    mask: int = 0
    plain: bool = True
    raw: bytes = b""

    def __str__(self) -> str:
        words = [f"from {self.source}" if self.source else "", f"to {self.destination}" if self.destination else ""]
        words.append(f"fwmark {self.mark:#x}/{self.mask:#x}" if self.mask else "")
        words.append("" if self.plain else "and more")
        table = "main" if self.table == MAIN else self.table
        return " ".join(["ip rule", f"{self.priority}:", *filter(None, words), f"lookup {table}"])

    def would_take(self, other: Rule) -> bool:
        """Whether a request to delete this one matches the other as well (net/core/fib_rules.c, rule_find)."""
        return (
            (self.priority, self.table) == (other.priority, other.table)
            and (not self.source or self.source == other.source)
            and (not self.destination or self.destination == other.destination)
            and (not self.mask or (self.mark, self.mask) == (other.mark, other.mask))
        )


@dataclass(frozen=True, slots=True)
class Route:
    """`destination` is empty for a default route."""

    table: int
    destination: str
    gateway: str
    link: str
    raw: bytes = b""

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        return f"ip route {self.destination or 'default'}{via} dev {self.link} table {self.table}"


@dataclass(frozen=True, slots=True)
class Link:
    """`kind` is the kernel's; `elsewhere`: its other end is in another network namespace."""

    name: str
    index: int
    kind: str = ""
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`saved` has what iptables-save prints, for each binary ("iptables-legacy", "iptables-nft"). `nft_chains` are
    the chains of table ip aws-cni, None: there is none. `networks` are the node's subnets; `agent` says where its
    daemon was seen, `files` which of its files are there."""

    rules: tuple[Rule, ...] = ()
    routes: tuple[Route, ...] = ()
    links: tuple[Link, ...] = ()
    networks: tuple[IPv4Network, ...] = ()
    saved: dict[str, str] = field(default_factory=dict)
    nft_chains: frozenset[str] | None = None
    files: tuple[str, ...] = ()
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Script:
    """For BINARY-restore --noflush; `shows` is what it removes, in lines."""

    binary: str
    table: str
    text: str
    shows: tuple[str, ...]


@dataclass(slots=True)
class Leftovers:
    """`living`: why nothing may be removed yet. `kept` is like its, and not taken for it."""

    rules: list[Rule] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)
    nft_table: bool = False
    living: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What goes, in the order in which it goes: what shows that it was here goes last."""
        found = [*map(str, self.rules), *map(str, self.routes), *(f"ip link {link.name}" for link in self.links)]
        found += [f"nft table ip {NFT_TABLE}"] * self.nft_table
        return found + [
            f"{script.binary} -t {script.table} {line}" for script in self.scripts for line in script.shows
        ]


def is_its_socket(path: str) -> bool:
    """As the process that serves there named it: by /run or /var/run, its own root or the host's."""
    return path.endswith(SOCKET.removeprefix("run"))


def leftovers(seen: Snapshot) -> Leftovers:
    found = Leftovers()
    found.living = list(_living(seen))
    for binary, saved in seen.saved.items():
        _chains(found, binary, saved)
    found.nft_table = seen.nft_chains is not None and seen.nft_chains == NFT_CHAINS
    if seen.nft_chains is not None and not found.nft_table:
        found.kept.append(f"nft table ip {NFT_TABLE}: its chains are not those of the AWS VPC CNI")
    found.links = [
        link for link in seen.links if VETH.fullmatch(link.name) and link.kind == "veth" and not link.elsewhere
    ]
    _rules(found, seen, certain=bool(found.scripts or found.nft_table or seen.files))
    return found


def _living(seen: Snapshot) -> Iterator[str]:
    if seen.agent:
        yield f"its agent is here: {seen.agent}"
    links = {link.name: link for link in seen.links}
    for link in seen.links:
        if VETH.fullmatch(link.name) and link.elsewhere:
            name = link.name
            yield f"link {name} leads to a pod's network namespace (if no pod has it: ip link delete {name})"
        elif BRANCH.fullmatch(link.name):
            yield f"link {link.name} is of a pod with security groups of its own"
    pods = {rule.destination for rule in seen.rules if _to_pod(rule)}
    for route in seen.routes:
        way = links.get(route.link)
        known = route.table == MAIN and f"{route.destination}/32" in pods
        if known and way is not None and way.elsewhere and not VETH.fullmatch(way.name):
            yield f"a route leads to {route.destination} by {way.name}, a pod's"


# Rules and routes


def _to_pod(rule: Rule) -> bool:
    alone = rule.plain and rule.destination.endswith("/32") and not (rule.source or rule.mask)
    return rule.priority == POD_TO and rule.table == MAIN and alone


def _from_one(rule: Rule, priority: int) -> bool:
    alone = rule.plain and rule.source.endswith("/32") and not (rule.destination or rule.mask)
    return rule.priority == priority and alone and _may_be_its(rule.table)


def _may_be_its(table: int) -> bool:
    """Device index + 1; 10000 + 100 x card + device index (pkg/utils/networkutils, CalculateRouteTableId)."""
    return 2 <= table <= 100 or 10100 <= table < 20000


def _rules(found: Leftovers, seen: Snapshot, *, certain: bool) -> None:
    inside = [rule for rule in seen.rules if _inside(rule.destination or rule.source, seen.networks)]
    to_pods = [rule for rule in inside if _to_pod(rule)]
    pods = {rule.destination for rule in to_pods}
    tables = {table: routes for table in {r.table for r in seen.rules} if (routes := _its_table(seen.routes, table))}
    from_pods = [
        rule for rule in inside if _from_one(rule, POD_FROM) and (rule.source in pods or rule.table in tables)
    ]
    marked = [
        rule
        for rule in seen.rules
        if (rule.priority, rule.table, rule.mark, rule.mask) == (MARKED, MAIN, MARK, MARK)
        and rule.plain
        and not (rule.source or rule.destination)
    ]
    external = [
        rule
        for rule in seen.rules
        if (rule.priority, rule.table) == (EXTERNAL, MAIN)
        and rule.plain
        and rule.destination
        and not (rule.source or rule.mask)
    ]
    from_enis = [rule for rule in seen.rules if _from_one(rule, ENI_FROM) and rule.table in tables]
    taken = [*from_pods, *to_pods, *marked, *external, *from_enis] if certain else []
    found.rules = taken
    for table in sorted({rule.table for rule in taken} & tables.keys()):
        if all(rule in taken for rule in seen.rules if rule.table == table):
            found.routes += tables[table]
        else:
            found.kept.append(f"table {table}: another rule leads to it")
    for rule in seen.rules:
        if rule.priority in (POD_TO, MARKED, EXTERNAL, POD_FROM) and rule not in taken:
            why = "not its form" if certain else "nothing else of it is here"
            found.kept.append(f"{rule}: its priority, but {why}")


def _inside(network: str, networks: Iterable[IPv4Network]) -> bool:
    return bool(network) and any(IPv4Network(network).subnet_of(each) for each in networks)


def _its_table(routes: Iterable[Route], table: int) -> list[Route]:
    """Its two routes, if the table has nothing else."""
    here = sorted((route for route in routes if route.table == table), key=lambda route: route.destination)
    if len(here) != 2 or not _may_be_its(table):
        return []
    default, way = here
    same = not default.destination and default.gateway and default.gateway == way.destination
    return here if same and not way.gateway and default.link == way.link else []


# iptables


def vpc_networks(saved: Iterable[str]) -> set[IPv4Network]:
    """Those that its SNAT chain names as the VPC's."""
    found = set()
    for text in saved:
        for line in text.splitlines():
            words = shlex.split(line) if line.startswith("-A AWS-") else []
            if "-d" in words and CHAIN.fullmatch(words[1]) and _after(words, "-j") == "RETURN":
                found.add(IPv4Network(_after(words, "-d"), strict=False))
    return {network for network in found if network.prefixlen >= 8}


def _chains(found: Leftovers, binary: str, saved: str) -> None:
    table, lines = "", list[str]()
    for line in saved.splitlines():
        if line.startswith("*"):
            table, lines = line[1:].strip(), []
        elif line.startswith("COMMIT"):
            _table(found, binary, table, lines)
        else:
            lines.append(line)


def _table(found: Leftovers, binary: str, table: str, lines: list[str]) -> None:
    chains = [name for line in lines if line.startswith(":") and CHAIN.fullmatch(name := line[1:].split()[0])]
    own, inner = [], []
    kept_chains: set[str] = set()
    for line in lines:
        words = shlex.split(line) if line.startswith("-A ") else []
        if not words:
            continue
        chain, comment = words[1], _after(words, "--comment")
        target = _after(words, "-j") or _after(words, "-g")
        if chain in chains:
            inner.append(line)
        elif _marks(table, chain, comment, target) or (target in chains and comment.startswith("AWS")):
            own.append(line)
        elif target in chains:
            found.kept.append(f"{binary} -t {table} {line}: not its own rule, so {target} stays as well")
            kept_chains.add(target)
    # A chain that stays keeps those that it leads to.
    going = chains if not kept_chains else []
    if not (own or going):
        return
    commands = (
        [f"-D {line[3:]}" for line in own] + [f"-F {name}" for name in going] + [f"-X {name}" for name in going]
    )
    shows = (*own, *(f"chain {name}" for name in going), *(line for line in inner if going))
    found.scripts.append(Script(binary, table, "\n".join([f"*{table}", *commands, "COMMIT", ""]), shows))


def _marks(table: str, chain: str, comment: str, target: str) -> bool:
    return (table, chain, comment) in MARKING and target == "CONNMARK"


def _after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1] if option in words[:-1] else ""


def network_of(address: str, length: int) -> IPv4Network | None:
    """The subnet of an address of a link; None for one that is alone in it."""
    return IPv4Network((IPv4Address(address), length), strict=False) if 8 <= length <= 30 else None
