"""Who else writes or tests which bits of the packet mark and the connection mark, as the kernel's own rules say it.

nft's listing would not do: for a rule of iptables-nft it shows that there is a MARK target, but not its value, and
its text for some of them is wrong. The kernel's form of a rule is a short program on registers; it is followed here
as far as marks go. A value is thought of as (the old mark & keep) ^ flip, which is what all the ways to write a mark
come down to. Formats: linux/netfilter/nf_tables.h, xt_mark.h, xt_connmark.h, xt_TPROXY.h.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ipamd.host import netlink, others
from ipamd.host.legacy_iptables import Part
from ipamd.host.netlink import text
from ipamd.host.others import AnyChain

PACKET, CONNECTION = "packet mark", "connection mark"
ALL = 0xFFFFFFFF

# Seconds after which a host with very many rules is no longer looked through.
BUDGET = 5.0

# The attribute that makes meta and ct expressions be about the mark: NFTA_META_KEY and NFTA_CT_KEY are both 2,
# NFT_META_MARK and NFT_CT_MARK both 3. Rules with none of these need no reading.
_SIGNS = (struct.pack("=HH", 8, 2) + b"\0\0\0\3", b"MARK\0", b"mark\0", b"TPROXY\0")

_PREROUTING, _OUTPUT = 0, 3  # NF_INET_PRE_ROUTING, NF_INET_LOCAL_OUT
_OURS_RUNS_AT = -90  # the priority of our own prerouting chain, `ipamd.host.nftables`


@dataclass(frozen=True, slots=True, order=True)
class MarkUse:
    """What rules of one chain do with bits of a mark. `raises` may become 1 by it, `clears` only 0, `tests` decides
    by them."""

    family: str
    table: str
    chain: str
    mark: str
    raises: int = 0
    clears: int = 0
    tests: int = 0


@dataclass(frozen=True, slots=True)
class _Value:
    """`source`: PACKET, CONNECTION, or empty for a value that is no mark. `flip` None: unknown."""

    source: str = ""
    keep: int = 0
    flip: int | None = None


def mark_uses(but: tuple[str, str]) -> tuple[list[MarkUse], bool]:
    """Those of all nftables chains but the table `but` (family, name), and whether all rules were read within the
    budget.

    Blocks for up to a few seconds on a host with a hundred thousand rules. Raises `HostError`.
    """
    end = time.monotonic() + BUDGET
    found: dict[tuple[str, str, str, str], MarkUse] = {}
    for family, fields in others.nft_dump(others.NFT_GETRULE, others.NFT_NEWRULE):
        if time.monotonic() > end:
            return sorted(found.values()), False
        expressions = fields.get(4, b"")  # NFTA_RULE_TABLE, CHAIN, EXPRESSIONS
        if not any(sign in expressions for sign in _SIGNS):
            continue
        table, chain = text(fields.get(1, b"")), text(fields.get(2, b""))
        if (family, table) != but:
            _add(found, (family, table, chain), _follow(expressions))
    return sorted(found.values()), True


def callers(tables: set[tuple[str, str]]) -> dict[tuple[str, str, str], set[str]]:
    """(family, table, chain) -> the chains whose rules jump or go to it, in these tables. A chain that is reached by
    a verdict map has the caller "", which stands for any. Raises `HostError`."""
    found: dict[tuple[str, str, str], set[str]] = {}
    mapped: set[tuple[str, str]] = set()
    for family, fields in others.nft_dump(others.NFT_GETRULE, others.NFT_NEWRULE) if tables else ():
        table, chain = text(fields.get(1, b"")), text(fields.get(2, b""))
        if (family, table) not in tables:
            continue
        for _, element in netlink.attributes(fields.get(4, b"")):
            expression = dict(netlink.attributes(element))
            words = dict(netlink.attributes(expression.get(2, b"")))
            if text(expression.get(1, b"")) == "lookup" and 3 in words and _be32(words[3]) == 0:  # into the verdict
                mapped.add((family, table))
            elif text(expression.get(1, b"")) == "immediate":
                verdict = dict(netlink.attributes(dict(netlink.attributes(words.get(2, b""))).get(2, b"")))
                if 2 in verdict:  # NFTA_VERDICT_CHAIN
                    found.setdefault((family, table, text(verdict[2])), set()).add(chain)
    for (family, table, _), by in found.items():
        if (family, table) in mapped:
            by.add("")
    return found


def legacy_mark_uses(parts: list[Part]) -> list[MarkUse]:
    """Those of iptables-legacy."""
    found: dict[tuple[str, str, str, str], MarkUse] = {}
    for part in parts:
        _add(found, (part.family, part.table, part.chain), _xtables(part.name, part.revision, part.info))
    return sorted(found.values())


def _add(
    found: dict[tuple[str, str, str, str], MarkUse],
    place: tuple[str, str, str],
    uses: Iterator[tuple[str, int, int, int]],
) -> None:
    for mark, raises, clears, tests in uses:
        key = (*place, mark)
        before = found.get(key, MarkUse(*key))
        found[key] = MarkUse(*key, before.raises | raises, before.clears | clears, before.tests | tests)


def harmful(use: MarkUse, bits: int, chain: AnyChain | None) -> int:
    """Which of our bits suffer from it.

    To clear them does no harm where they are not set yet: in packets that our own chain has still to see, and in
    packets of the host itself, which carry none. A connection is remembered from its first packet on, so clearing
    bits of its mark is harmless only in chains of type nat, which see no later one; they run at -100, whatever their
    priority says.
    """
    hurt = (use.raises | use.tests) & bits
    before_ours = (
        chain is not None
        and chain.hook == _PREROUTING
        and (chain.type == "nat" or (use.mark == PACKET and chain.priority < _OURS_RUNS_AT))
    )
    of_the_host = chain is not None and chain.hook == _OUTPUT and use.mark == PACKET
    if not before_ours and not of_the_host:
        hurt |= use.clears & bits
    return hurt


def _follow(expressions: bytes) -> Iterator[tuple[str, int, int, int]]:
    """(mark, raises, clears, tests) of each expression of a rule that uses a mark."""
    registers: dict[int, _Value] = {}
    for _, element in netlink.attributes(expressions):
        expression = dict(netlink.attributes(element))
        name = text(expression.get(1, b""))
        fields = dict(netlink.attributes(expression.get(2, b"")))
        if name in ("meta", "ct"):
            mark = PACKET if name == "meta" else CONNECTION
            is_mark = _be32(fields.get(2)) == 3
            source = fields.get(3) if name == "meta" else fields.get(4)  # SREG: it is written
            if source is not None:
                if is_mark:
                    raises, clears = _written(mark, registers.get(_be32(source), _Value()))
                    yield mark, raises, clears, 0
            else:
                registers[_be32(fields.get(1))] = _Value(mark, ALL, 0) if is_mark else _Value()
        elif name == "immediate":
            registers[_be32(fields.get(1))] = _Value("", 0, _data(fields.get(2)))
        elif name == "bitwise":
            old = registers.get(_be32(fields.get(1)), _Value())
            registers[_be32(fields.get(2))] = _bitwise(old, fields)
        elif name == "byteorder":  # for a comparison by size, which reads all bits
            registers[_be32(fields.get(2))] = _Value(registers.get(_be32(fields.get(1)), _Value()).source)
        elif name in ("cmp", "range"):
            yield from _tested(registers.get(_be32(fields.get(1))))
        elif name == "lookup":
            yield from _tested(registers.get(_be32(fields.get(2))))
            if 3 in fields:
                registers[_be32(fields.get(3))] = _Value()
        elif name in ("match", "target"):
            yield from _xtables(text(fields.get(1, b"")), _be32(fields.get(2)), fields.get(3, b""))
        elif 1 in fields and name not in ("counter", "limit", "log", "quota", "nat", "masq", "redir", "reject"):
            registers.pop(_be32(fields.get(1)), None)  # payload, fib, hash...: what was in the register is gone


def _bitwise(old: _Value, fields: dict[int, bytes]) -> _Value:
    operation = _be32(fields.get(6))
    if old.flip is None or operation or 8 in fields:
        return _Value(old.source if operation else "")  # shifts, and operations on two registers
    mask, xor = _data(fields.get(4)), _data(fields.get(5))
    return _Value(old.source, old.keep & mask, (old.flip & mask) ^ xor)


def _written(mark: str, value: _Value) -> tuple[int, int]:
    """(bits that may become 1 by it, bits that only become 0)."""
    if value.flip is None:
        return ALL, 0
    if value.source == mark:
        return value.flip, ~value.keep & ~value.flip & ALL
    raises = value.keep | value.flip
    return raises, ~raises & ALL


def _tested(value: _Value | None) -> Iterator[tuple[str, int, int, int]]:
    if value is not None and value.source:
        yield value.source, 0, 0, value.keep if value.flip is not None else ALL


def _xtables(name: str, revision: int, info: bytes) -> Iterator[tuple[str, int, int, int]]:
    """An extension of iptables."""
    if name in ("mark", "connmark") and len(info) >= 8:
        _value, mask = struct.unpack_from("=II", info)
        yield PACKET if name == "mark" else CONNECTION, 0, 0, mask
    elif name == "MARK" and len(info) >= 8:
        value, mask = struct.unpack_from("=II", info)
        yield PACKET, value, mask & ~value, 0
    elif name == "CONNMARK" and len(info) >= 16:
        value, ct_mask, packet_mask = struct.unpack_from("=III", info)
        mode = info[14] if revision >= 2 else info[12]  # since revision 2 two fields for shifts come before it
        if mode == 0:  # set
            yield CONNECTION, value, ct_mask & ~value, 0
        elif mode == 1:  # save
            yield CONNECTION, packet_mask, ct_mask & ~packet_mask, 0
        else:  # restore
            yield PACKET, ct_mask, packet_mask & ~ct_mask, 0
    elif name == "TPROXY" and len(info) >= 8:
        mask, value = struct.unpack_from("=II", info)
        yield PACKET, value, mask & ~value, 0
    elif name == "HMARK":
        yield PACKET, ALL, 0, 0


def _data(value: bytes | None) -> int:
    """NFTA_DATA_VALUE, in the byte order of the machine, as marks are."""
    data = dict(netlink.attributes(value or b"")).get(1, b"")
    return int.from_bytes(data[:4], sys.byteorder)


def _be32(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")
