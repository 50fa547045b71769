"""While the daemon serves, the network configuration chains what is there: plugins come, go and are renewed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ipamd.install.files import CONFLIST
from ipamd.process import conflist
from ipamd.process.conflist import Conflist
from ipamd.settings import CniSettings
from ipamd.telemetry.conditions import Conditions
from tests.unit.test_chain import NEW, OLD, plugin


class Node:
    """Its folders, and what the daemon does with them."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.conf_dir, self.bin_dir = root / "net.d", root / "bin"
        self.conditions = Conditions()
        plugin(self.bin_dir, "ipamd-cni")
        self._settings = CniSettings(conf_dir=self.conf_dir, bin_dirs=[self.bin_dir], **settings)

    @property
    def file(self) -> Path:
        return self.conf_dir / CONFLIST

    def types(self) -> list[str]:
        return [each["type"] for each in json.loads(self.file.read_bytes())["plugins"]][1:]

    def condition(self, name: str = "conflist.plugins_left_out") -> str:
        return next((each.text for each in self.conditions.active() if each.name == name), "")

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        written = Conflist(self._settings, self.conf_dir, self.conditions)
        await written.offer(lambda: None)
        following = asyncio.create_task(written.follow())
        try:
            yield
            assert not following.done()
        finally:
            following.cancel()
            await asyncio.wait((following,))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - of files
                await asyncio.sleep(0.02)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflist, "GONE_FOR", 0.0)


async def test_a_default_plugin_that_is_not_there_is_no_condition(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.served():
        assert node.types() == [] and node.condition() == ""


async def test_a_named_plugin_that_is_not_there_is_a_condition(tmp_path: Path) -> None:
    node = Node(tmp_path, chain=["portmap", "bandwidth"])
    plugin(node.bin_dir, "bandwidth", *NEW)
    async with node.served():
        assert node.types() == ["bandwidth"]
        assert f"without plugins of cni.chain: portmap is not in {node.bin_dir}." in node.condition()
        plugin(node.bin_dir, "portmap", *NEW)
        await node.until(lambda: node.types() == ["portmap", "bandwidth"])
        await node.until(lambda: node.condition() == "")


async def test_what_works_on_no_node_is_left_out_and_said(tmp_path: Path) -> None:
    node = Node(tmp_path, chain=["portmap", "portmap", "ipamd-cni", {"sysctl": {}}])
    plugin(node.bin_dir, "portmap", *NEW)
    async with node.served():
        assert node.types() == ["portmap"]
        assert "portmap is there twice; ipamd-cni is in the list by itself; " in node.condition()


@pytest.mark.parametrize("how", ["moved in", "made executable last", "linked"])
async def test_a_plugin_that_appears_is_chained(tmp_path: Path, how: str) -> None:
    node = Node(tmp_path)
    async with node.served():
        made = plugin(tmp_path / "elsewhere", "portmap", *OLD)
        if how == "moved in":
            made.rename(node.bin_dir / "portmap")
        elif how == "linked":
            (node.bin_dir / "portmap").symlink_to(made)
        else:
            (node.bin_dir / "portmap").write_bytes(made.read_bytes())
            await node.until(lambda: "not executable" in node.condition())
            (node.bin_dir / "portmap").chmod(0o755)
        await node.until(lambda: node.types() == ["portmap"])
        assert json.loads(node.file.read_bytes())["cniVersions"] == ["1.0.0"]
        await node.until(lambda: node.condition() == "")


async def test_a_plugin_that_is_renewed_stays_in_the_chain(tmp_path: Path) -> None:
    node = Node(tmp_path)
    path = plugin(node.bin_dir, "portmap", *OLD)
    async with node.served():
        before = node.file.stat().st_ino
        path.unlink()
        (node.conf_dir / "99-other.conf").write_text("{}")  # another event, by which it has looked
        (node.conf_dir / "05-other.conf").write_text("{}")
        await node.until(lambda: node.condition("conflist.not_in_force") != "")
        assert node.types() == ["portmap"] and node.file.stat().st_ino == before
        plugin(node.bin_dir, "portmap", *NEW)
        await node.until(lambda: json.loads(node.file.read_bytes())["cniVersions"] == ["1.0.0", "1.1.0"])
        assert node.types() == ["portmap"] and node.condition() == ""


@pytest.mark.usefixtures("at_once")
async def test_a_plugin_that_stays_away_is_taken_out_and_missed(tmp_path: Path) -> None:
    node = Node(tmp_path)
    plugin(node.bin_dir, "portmap", *NEW)
    async with node.served():
        (node.bin_dir / "portmap").unlink()
        await node.until(lambda: node.types() == [])
        await node.until(lambda: "portmap is not in" in node.condition())


async def test_the_time_of_a_plugin_that_is_gone_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a further event."""
    monkeypatch.setattr(conflist, "GONE_FOR", 0.3)
    node = Node(tmp_path)
    plugin(node.bin_dir, "portmap", *NEW)
    async with node.served():
        (node.bin_dir / "portmap").unlink()
        await node.until(lambda: node.types() == [])


@pytest.mark.parametrize("how", ["edited", "removed"])
async def test_a_file_that_somebody_changed_is_left_alone(tmp_path: Path, how: str) -> None:
    node = Node(tmp_path, chain=["portmap", "tuning"])
    async with node.served():
        if how == "edited":
            node.file.write_text('{"plugins": [{"type": "ipamd-cni"}, {"type": "mine"}]}')
        else:
            node.file.unlink()
        plugin(node.bin_dir, "portmap", *NEW)
        await node.until(lambda: "portmap" not in node.condition())
        assert node.types() == ["mine"] if how == "edited" else not node.file.exists()
    async with node.served():
        assert node.types() == ["portmap"], "a restart writes it again"


async def test_nothing_but_the_conflist_is_left_in_its_folder(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.served():
        plugin(node.bin_dir, "portmap", *NEW)
        await node.until(lambda: node.types() == ["portmap"])
        await node.until(lambda: [path.name for path in node.conf_dir.iterdir()] == [CONFLIST])
