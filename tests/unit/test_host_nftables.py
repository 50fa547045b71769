"""The nftables table as text, and what becomes of an nft that is missing, refuses or hangs."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipamd.host import NftError, nftables, others
from ipamd.host.nftables import Exit, Nftables, Table
from ipamd.host.others import AnyTable

EXITS = (Exit("ens5", 1500, 0x40, True), Exit("ens6", 1501, 0x1, False), Exit("ens7", 1502, 0x2, False))
TABLE = Table("ipamd", 0x7F, EXITS, ("10.0.0.0/16", "100.64.0.0/10"), "10.0.0.10")

ASSIGNMENT = re.compile(r"(meta|ct) mark set (?:meta|ct) mark & (0x[0-9a-f]{8}) \| (0x[0-9a-f]{8})")


@given(st.integers(0, 0xFFFFFFFF))
def test_only_our_bits_of_a_mark_are_ever_written(before: int) -> None:
    assignments = ASSIGNMENT.findall(TABLE.render())
    assert len(assignments) == 2 * len(EXITS)
    assert TABLE.render().count("mark set") == len(assignments)
    for _, kept, bits in assignments:
        after = before & int(kept, 16) | int(bits, 16)
        assert after & ~TABLE.bits == before & ~TABLE.bits
        assert after & TABLE.bits in {exit_.mark for exit_ in EXITS}


def test_without_snat_there_is_no_nat_chain() -> None:
    text = Table("ipamd", 0x7F, EXITS, ("10.0.0.0/16",), "").render()
    assert "snat" not in text
    assert "type nat" not in text
    assert "out of the VPC" not in text


@pytest.fixture
def fake_nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to write a script into, found as nft; no other nft is."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/nowhere")
    return tmp_path / "nft"


def _script(file: Path, body: str) -> None:
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


async def test_a_missing_nft_is_named_with_its_package(fake_nft: Path) -> None:
    with pytest.raises(NftError, match="install the package nftables"):
        Nftables().require()
    with pytest.raises(NftError, match="install the package nftables"):
        await Nftables().load(TABLE)


async def test_an_nft_that_cannot_run_is_an_nft_error(fake_nft: Path) -> None:
    fake_nft.mkdir()
    with pytest.raises(NftError, match="can't be started"):
        await Nftables().load(TABLE)


async def test_what_nft_says_reaches_the_operator(fake_nft: Path) -> None:
    _script(fake_nft, "echo 'Operation not permitted' >&2; exit 1")
    with pytest.raises(NftError, match="Operation not permitted"):
        await Nftables().load(TABLE)


async def test_an_nft_that_hangs_is_ended(fake_nft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "TIMEOUT", 0.2)
    _script(fake_nft, f"echo $$ > {fake_nft.parent}/pid; exec /bin/sleep 1000")
    with pytest.raises(NftError, match="did not end"):
        await Nftables().load(TABLE)
    pid_file = fake_nft.parent / "pid"
    if pid_file.exists():  # else it was ended before it could even say so
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)


async def test_differently_spelling_nft_is_not_written_twice(fake_nft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists the table in words of its own: what it shows for what was loaded counts as that."""
    log = fake_nft.parent / "loaded"
    _script(
        fake_nft,
        f"""case "$*" in
  "-f -") /bin/cat > /dev/null; echo x >> {log} ;;
  *) /bin/cat {log}; echo "table inet ipamd (in other words)" ;;
esac""",
    )
    monkeypatch.setattr(others, "tables", lambda: [AnyTable("inet", "ipamd")] if log.exists() else [])
    nft = Nftables()
    assert not await nft.holds(TABLE)
    await nft.load(TABLE)
    assert await nft.holds(TABLE)
    with log.open("a") as file:
        file.write("tampered\n")
    assert not await nft.holds(TABLE)


async def test_cancellation_is_kept_when_nft_has_just_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the daemon would go on with its watch instead of ending."""
    ended = asyncio.get_running_loop().create_future()
    asked = asyncio.Event()

    class Process:
        pid, returncode = 1, 0

        async def communicate(self, script: bytes) -> tuple[bytes, bytes]:
            asked.set()
            await ended
            return b"", b""

    async def start(*_: object, **__: object) -> Process:
        return Process()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    monkeypatch.setattr(others, "tables", lambda: [AnyTable("inet", "ipamd")])
    looking = asyncio.create_task(Nftables().holds(TABLE))
    await asked.wait()
    ended.set_result(None)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
