"""The nftables table: by which ENI a pod's packets leave, and what is rewritten on the way out of the VPC.

Bits of the packet mark and of the connection mark (defaults; both settings):

    0x3f  the secondary ENI, by its device index: "leave by ENI i"
    0x40  the main bit: "leave by the primary ENI, through the main table"

No other bit is ever written. A packet gets its bits in prerouting, right after DNAT, so that the real destination
decides and not a service's virtual address:

    a reply                  leaves by the ENI by which its connection came in (the connection mark remembers)

and one from a pod's veth (known by the link's group) that is no reply

    to outside of the VPC    leaves by the primary ENI, whose address it will carry: SNAT in postrouting
    anything else            leaves by the ENI that holds the pod's address

Before all that, and before the connection is tracked, a packet whose source is not an address of that pod is
dropped: the way back to its source, through the table of the pods, must lead out by the veth that it came in by.

Verdict maps keep the number of rules that a packet meets independent of the number of ENIs.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import deque
from dataclasses import dataclass

from ipamd.host import others
from ipamd.host.errors import NftError

TIMEOUT = 10.0

# Distinguishes our table from a foreign one of the same name.
COMMENT = "made and kept by ipamd: changes are undone"

# AWS, "Access instance metadata for an EC2 instance". Other services at 169.254.169.x stay reachable: DNS, time.
METADATA = ("169.254.169.254", "fd00:ec2::254")

_MISSING = "nft is not installed: install the package nftables"


@dataclass(frozen=True, slots=True)
class Exit:
    """One ENI as a way out: its link, the group of its pods' veths, and its mark."""

    link: str
    group: int
    mark: int
    primary: bool


@dataclass(frozen=True, slots=True)
class Table:
    """`bits` are all mark bits that are ours; `inside` the CIDRs that are reached without SNAT; `snat_to` the
    primary ENI's address, empty for no SNAT at all; `metadata_blocked` keeps pods from the instance's credentials."""

    name: str
    bits: int
    exits: tuple[Exit, ...]
    inside: tuple[str, ...]
    snat_to: str
    metadata_blocked: bool = False

    def __str__(self) -> str:
        return f"nft table inet {self.name}"

    def render(self) -> str:
        """In nft's own order and spelling, so that an unchanged listing compares equal (white space aside)."""
        blocks = [f'comment "{COMMENT}"', *self._sets(), *self._guard(), self._prerouting(), self._from_pod()]
        if self.snat_to:
            blocks.append(self._postrouting())
        for exit_ in self.exits:
            blocks.append(_block(f"chain leave_{exit_.group}", f"meta mark set {self._bits('meta', exit_.mark)}"))
            blocks.append(_block(f"chain entered_{exit_.group}", f"ct mark set {self._bits('ct', exit_.mark)}"))
        return _block(f"table inet {self.name}", *blocks)

    def _sets(self) -> list[str]:
        if not self.snat_to:
            return []
        elements = [f"elements = {{ {', '.join(self.inside)} }}"] if self.inside else []
        return [_block("set inside", "type ipv4_addr", "flags interval", *elements)]

    def _guard(self) -> list[str]:
        return [
            _block(
                "chain guard",
                "type filter hook prerouting priority raw; policy accept;",
                f'iifgroup {self._pods} goto own_source comment "from a pod: with its own address alone"',
            ),
            # What IPv6 needs on a link before and beside a pod's address is of no use beyond it.
            _block(
                "chain own_source",
                "ip6 saddr { ::, fe80::/10 } ip6 daddr { fe80::/10, ff00::/8 } accept",
                "fib saddr . iif oif 0 drop",
            ),
        ]

    @property
    def _pods(self) -> str:
        groups = ", ".join(str(e.group) for e in self.exits)
        return f"{{ {groups} }}" if len(self.exits) > 1 else groups

    def _prerouting(self) -> str:
        # iif and oif hold the device itself, by its index: udev gives a hot-plugged ENI its final name whenever it
        # comes to it, and the rules go on meaning the same link.
        entered = ", ".join(f'"{e.link}" : goto entered_{e.group}' for e in self.exits)
        replies = ", ".join(
            f"{e.mark:#010x} : goto leave_{e.group}" for e in sorted(self.exits, key=lambda e: e.mark)
        )
        # Not only a pod's: a connection to one on another node that came in by a node port is answered from there.
        reply = f"ct direction reply ct mark & {self.bits:#010x} vmap {{ {replies} }}"
        return _block(
            "chain prerouting",
            "type filter hook prerouting priority dstnat + 10; policy accept;",
            f'{reply} comment "a reply leaves as it came"',
            f'iifgroup {self._pods} goto from_pod comment "from a pod: choose its way out"',
            f'ct state new iif vmap {{ {entered} }} comment "remember by which ENI a connection came in"',
        )

    def _from_pod(self) -> str:
        own = ", ".join(f"{e.group} : goto leave_{e.group}" for e in self.exits if not e.primary)
        rules = []
        if self.metadata_blocked:
            # After DNAT: who hands out other credentials at that address goes on doing so.
            v4, v6 = METADATA
            rules.append(f'ip daddr {v4} reject with icmpx type admin-prohibited comment "no metadata for pods"')
            rules.append(f'ip6 daddr {v6} reject with icmpx type admin-prohibited comment "no metadata for pods"')
        if self.snat_to:
            group = next(e.group for e in self.exits if e.primary)
            rules.append(f'ip daddr != @inside goto leave_{group} comment "out of the VPC: by the primary ENI"')
        if own:
            rules.append(f'iifgroup vmap {{ {own} }} comment "by the ENI that holds the address"')
        return _block("chain from_pod", *rules)

    def _postrouting(self) -> str:
        primary = next(e for e in self.exits if e.primary)
        return _block(
            "chain postrouting",
            "type nat hook postrouting priority srcnat; policy accept;",
            f"meta mark & {primary.mark:#010x} == {primary.mark:#010x} "
            f'oif "{primary.link}" ip saddr != {self.snat_to} '
            f'snat ip to {self.snat_to} fully-random comment "leave the VPC with the primary address"',
        )

    def _bits(self, where: str, value: int) -> str:
        # Clears our bits except those that are set right after: nft spells it this way.
        return f"{where} mark & {~self.bits & 0xFFFFFFFF | value:#010x} | {value:#010x}"


def _block(head: str, *body: str) -> str:
    return "\n".join((f"{head} {{", *body, "}"))


class Nftables:
    """Loads the table, in one transaction, and tells whether the kernel's differs from it."""

    def __init__(self) -> None:
        # What nft shows for what was loaded last: covers versions of nft that spell something differently.
        self._shown: tuple[str, str] = ("", "")
        self._own: deque[int] = deque(maxlen=16)  # numbers of the transactions that were made here
        self.loading = False

    def require(self) -> None:
        """Raises `NftError` when there is no nft to call."""
        if shutil.which("nft") is None:
            raise NftError(_MISSING)

    async def holds(self, table: Table) -> bool:
        """Whether the kernel holds exactly this table. Raises `NftError`."""
        wanted = table.render()
        found = await self._list(table.name)
        return _plain(found) == _plain(wanted) or (wanted, found) == self._shown

    async def load(self, table: Table) -> None:
        """Raises `HostError`, and then the kernel's is as it was. Which of the transactions that the kernel announces
        meanwhile was made here is known when this returns."""
        wanted = table.render()
        script = _script(table.name, await self._list(table.name), wanted)
        self.loading = True
        try:
            before = others.nft_generation()
            await self._nft("-f", "-", script=script)
            # Not known by the process: the kernel gives its pid in the first PID namespace, which may not be ours. If
            # somebody else made a transaction at the same time, both pass for theirs.
            if others.nft_generation() == before + 1:
                self._own.append(before + 1)
        finally:
            self.loading = False
        self._shown = (wanted, await self._list(table.name))

    def made(self, generation: int) -> bool:
        """Whether the transaction of this number was one of the last that were made here."""
        return generation in self._own

    def is_there(self, name: str) -> bool:
        """Whether the kernel has a table of this name, whatever is in it. Raises `HostError`."""
        # Not by `nft list tables`, which reads all elements of everybody's sets: 0.5 s beside 50,000 of kube-proxy's.
        return any((table.family, table.name) == ("inet", name) for table in others.tables())

    async def _list(self, name: str) -> str:
        if not self.is_there(name):
            return ""
        return await self._nft("-s", "-n", "list", "table", "inet", name)

    async def _nft(self, *arguments: str, script: str = "") -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                "nft",
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError:
            raise NftError(_MISSING) from None
        except OSError as error:
            raise NftError(f"nft can't be started: {error.strerror}") from error
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes just when the process has ended.
            async with asyncio.timeout(TIMEOUT):
                out, err = await process.communicate(script.encode())
        except TimeoutError:
            raise NftError(f"nft {' '.join(arguments)} did not end within {TIMEOUT:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise NftError(f"nft {' '.join(arguments)} failed: {err.decode(errors='replace').strip()}")
        return out.decode()


def _script(name: str, found: str, wanted: str) -> str:
    """From the table that was found to the wanted one, in one transaction.

    Where it can be, the table and its chains stay and only what is in them is changed. A new table would be hooked
    before the old one goes, and a packet in between passes neither; and a set that is made anew is empty for a moment
    in which the new rules ask it already. Of some 450 packets/s, 134 new tables lost 8, and 199 new sets 5.
    """
    here, there = _chains(found), _chains(wanted)
    stale = here.keys() - there.keys()
    hooks_differ = any(here[chain] != there[chain] for chain in here.keys() & there.keys())
    if COMMENT not in found or hooks_differ:
        # Naming it first makes the deletion valid whether or not the table exists.
        return f"table inet {name}\ndelete table inet {name}\n{wanted}\n"
    lines = [f"flush table inet {name}"]
    lines += [f"delete chain inet {name} {chain}" for chain in sorted(stale)]
    before, after = _sets(found), _sets(wanted)
    for each, content in before.items():
        if after.get(each) == content:
            wanted = re.sub(rf"\bset {each} \{{.*?\n\}}\n", "", wanted, flags=re.DOTALL)
        else:
            lines.append(f"delete set inet {name} {each}")
    return "\n".join((*lines, wanted, ""))


def _sets(listing: str) -> dict[str, str]:
    return dict(re.findall(r"\bset (\w+) \{ (.*?) (?:\} )?\}", _plain(listing)))


def _chains(listing: str) -> dict[str, str]:
    """What each chain is hooked to; empty for one that is only jumped to."""
    return dict(re.findall(r"\bchain (\w+) \{ (type .+? policy \w+ )?", _plain(listing)))


def _plain(text: str) -> str:
    """Free of what varies without meaning anything: white space, separators, names of numbers, order in sets."""
    text = re.sub(r"priority (raw|-300)\b", "priority -300", text)
    text = re.sub(r"\bicmpx (type )?(admin-prohibited|3)\b", "icmpx 3", text)
    text = re.sub(r"\boif (missing|0)\b", "oif 0", text)
    text = re.sub(r"priority (dstnat \+ 10|-90)\b", "priority -90", text)
    text = re.sub(r"priority (srcnat|100)\b", "priority 100", text)
    text = re.sub(r"\bct state (new|0x8)\b", "ct state new", text)
    text = re.sub(r"\bct direction (reply|1)\b", "ct direction reply", text)
    text = re.sub(r"0x0*([0-9a-f]+)", r"0x\1", text)
    text = re.sub(r"[\s;]+", " ", text).strip()
    return re.sub(r"\{ ([^{}]+,[^{}]+) \}", lambda found: f"{{ {', '.join(sorted(found[1].split(', ')))} }}", text)
