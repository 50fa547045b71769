"""A node of a VPC in a box on which a real systemd runs: systemd-nspawn(1) boots this machine's own files again.

The root is an overlay over /, with all changes in a tmpfs; the network namespace is the simulated instance's. ipamd
is installed as on an instance: a wheel of this source tree in a virtual environment below /opt, then `ipamd install`.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ipamd.sim.runtimes.process import Child
from ipamd.sim.vpc import SimulatedNode

TREE = Path(__file__).resolve().parents[2]
COMMAND = Path("/opt/ipamd/bin/ipamd")
BIN_DIR = Path("/opt/cni/bin")
CONFLIST = Path("/etc/cni/net.d/10-ipamd.conflist")

_DEPENDENCIES = Path("/opt/dependencies")
_PATIENCE = 60.0  # seconds, to boot
_SHUTDOWN = 20.0
_REBOOT = 133  # systemd's src/nspawn/nspawn.c, as RestartForceExitStatus= of systemd-nspawn@.service
_SOURCES = ("ipamd", "cni_shim", "systemd", "pyproject.toml", "README.md", "LICENSE")


class CannotBoot(Exception):
    """The message is what systemd-nspawn said."""


class Machine:
    """A booted machine. `leader` is the pid, here, of its systemd."""

    def __init__(self, root: Path, node: SimulatedNode, log: Path) -> None:
        self.root, self.node, self.log = root, node, log
        self._nspawn: Child | None = None
        self.leader = 0

    async def boot(self) -> None:
        """Skips the test where systemd-nspawn is missing or can't boot."""
        if shutil.which("systemd-nspawn") is None:
            pytest.skip("systemd-nspawn is not installed (Debian: systemd-container)")
        try:
            await self._boot()
        except CannotBoot as why:
            pytest.skip(f"systemd-nspawn can't boot here: {why}")

    async def _boot(self) -> None:
        self._nspawn = nspawn = await Child.start(
            [
                # What it keeps there it removes only from a tmpfs, which /run is where systemd booted the machine.
                *("unshare", "--mount", "sh", "-c"),
                'mkdir -p "$0" && mount -t tmpfs none "$0" && exec "$@"',
                *("/run/systemd/nspawn", "systemd-nspawn"),
                f"--directory={self.root}",
                f"--machine=ipamd-{secrets.token_hex(4)}",
                f"--network-namespace-path=/run/netns/{self.node.netns}",
                "--capability=CAP_NET_ADMIN,CAP_NET_RAW",
                f"--bind-ro={sysconfig.get_path('purelib')}:{_DEPENDENCIES}",
                *("--register=no", "--keep-unit", "--settings=no", "--link-journal=no"),
                *("--resolv-conf=off", "--timezone=off", "--console=pipe", "--quiet", "--boot"),
                "systemd.unit=multi-user.target",
            ],
            self.log,
            # With the network namespace of another, /proc/sys/net would be read-only even for root.
            os.environ | {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
        )
        try:
            async with asyncio.timeout(_PATIENCE):
                while nspawn.exit_code is None:
                    self.leader = _child_of(nspawn.pid)
                    if self.leader and await self._is_up():
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pass
        await self.shut_down()
        raise CannotBoot(nspawn.last_words() or f"exit code {nspawn.exit_code}")

    async def reboot(self) -> None:
        """Raises `CannotBoot`."""
        assert self._nspawn is not None
        await self.attempt("systemctl", "reboot")
        # With --keep-unit it ends, so that its caller starts it again.
        assert await self._nspawn.wait() == _REBOOT
        await self._boot()

    async def _is_up(self) -> bool:
        code, _ = await self.attempt("systemctl", "is-system-running")
        _, state = await self.attempt("systemctl", "show", "--property=ActiveState", "multi-user.target")
        return code in (0, 1) and state == "ActiveState=active"

    async def shut_down(self) -> None:
        """Its processes are gone after this, in good order or not."""
        if self._nspawn is None:
            return
        # What systemd-nspawn hands on to systemd as the order to shut down: systemd-nspawn(1), --kill-signal=.
        if not await self._nspawn.stop(_SHUTDOWN) and self.leader and Path(f"/proc/{self.leader}").exists():
            os.kill(self.leader, signal.SIGKILL)

    def path(self, path: str | Path) -> Path:
        """A file of the booted machine, as seen from here."""
        return Path(f"/proc/{self.leader}/root", str(path).lstrip("/"))

    def inside(self, *argv: str | Path) -> list[str]:
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd")
        return ["nsenter", f"--target={self.leader}", *namespaces, *map(str, argv)]

    async def attempt(
        self, *argv: str | Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Exit code and all output of a command on the machine."""
        process = await asyncio.create_subprocess_exec(
            *self.inside(*argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **(environment or {})},
        )
        out, _ = await process.communicate(stdin)
        assert process.returncode is not None
        return process.returncode, out.decode(errors="replace").strip()

    async def run(self, *argv: str | Path) -> str:
        """The output of a command that must succeed."""
        code, out = await self.attempt(*argv)
        assert code == 0, f"{' '.join(map(str, argv))}: {out}\n{await self.journal()}"
        return out

    async def show(self, *properties: str) -> dict[str, str]:
        """Of ipamd.service."""
        text = await self.run("systemctl", "show", f"--property={','.join(properties)}", "ipamd.service")
        return dict(line.split("=", 1) for line in text.splitlines())

    async def journal(self) -> str:
        return (await self.attempt("journalctl", "--no-pager", "-o", "cat", "-u", "ipamd.service"))[1]

    async def events(self, name: str) -> list[dict[str, Any]]:
        """Those of the daemon's log, of all its runs since the machine was booted."""
        lines = [json.loads(line) for line in (await self.journal()).splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    async def ask(self, *argv: str) -> Any:
        """What ipamctl answers."""
        code, out = await self.attempt(COMMAND.with_name("ipamctl"), *argv, "-o", "json")
        assert code in (0, 3), f"{argv}: exit code {code}: {out}"
        return json.loads(out)

    # Pods

    async def add(self, pod: str) -> str:
        """Makes a network namespace and calls the plugin, as a runtime would; the pod's address."""
        await self.run("ip", "netns", "add", pod)
        code, out = await self._plugin("ADD", pod)
        assert code == 0, f"{pod}: {out}\n{await self.journal()}"
        return str(json.loads(out)["ips"][0]["address"].partition("/")[0])

    async def delete(self, pod: str) -> None:
        code, out = await self._plugin("DEL", pod)
        assert code == 0, f"{pod}: {out}"
        await self.run("ip", "netns", "delete", pod)

    async def _plugin(self, verb: str, pod: str) -> tuple[int, str]:
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod,
            "CNI_NETNS": f"/run/netns/{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(BIN_DIR),
        }
        config = json.dumps({"cniVersion": "1.0.0", "name": "ipamd", "type": "ipamd-cni"}).encode()
        return await self.attempt(BIN_DIR / "ipamd-cni", stdin=config, environment=environment)

    async def pings(self, pod: str, target: str) -> bool:
        code, _ = await self.attempt("nsenter", f"--net=/run/netns/{pod}", "ping", "-c", "1", "-W", "5", "-q", target)
        return code == 0


@asynccontextmanager
async def machine(node: SimulatedNode) -> AsyncIterator[Machine]:
    """A booted machine with the ipamd command in /opt/ipamd, configured for the simulated EC2, and nothing else."""
    async with AsyncExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="ipamd-booted-"))
        stack.callback(shutil.rmtree, directory)
        # Not below /, where the overlay would overlap with itself.
        _mount(stack, directory, "-t", "tmpfs", "none")
        for name in ("upper", "work", "root"):
            (directory / name).mkdir()
        root = directory / "root"
        layers = f"lowerdir=/,upperdir={directory / 'upper'},workdir={directory / 'work'}"
        _mount(stack, root, "-t", "overlay", "overlay", "-o", layers)
        _empty(root)
        made = Machine(root, node, directory / "console")
        stack.push_async_callback(made.shut_down)
        await made.boot()
        await _place_ipamd(made)
        await _configure(made)
        yield made


def _mount(stack: AsyncExitStack, place: Path, *how: str) -> None:
    done = subprocess.run(["mount", *how, place], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no root for systemd-nspawn can be made here: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", "--lazy", place], check=True)


def _empty(root: Path) -> None:
    """Nothing of what this machine's systemd would start, and nothing of ipamd or other CNI plugins."""
    for wants in (root / "etc/systemd/system").glob("*.wants"):
        shutil.rmtree(wants)
    for name in ("etc/cni", "opt/cni", "opt/ipamd", "etc/ipamd", "var/log/journal"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "etc/machine-id").write_text("")
    for name in ("getty.target", "systemd-logind.service", "systemd-networkd.service", "e2scrub_reap.service"):
        unit = root / "etc/systemd/system" / name
        unit.unlink(missing_ok=True)
        unit.symlink_to("/dev/null")


async def _configure(made: Machine) -> None:
    """All but the endpoints is as on any instance."""
    text = made.node.config.read_text()
    sections = [section for section in text.split("\n\n") if section.startswith(("[ec2]", "[imds]"))]
    config = made.root / "etc/ipamd/config.toml"
    config.parent.mkdir()
    config.write_text("\n".join([*sections, "[pool]", "slack = 0", ""]))


async def _place_ipamd(made: Machine) -> None:
    """`python3 -m venv /opt/ipamd && /opt/ipamd/bin/pip install ipamd.whl`, with the dependencies of this run."""
    place = COMMAND.parents[1]
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    await made.run(python, "-m", "venv", "--without-pip", place)
    packages = made.root / place.relative_to("/") / "lib" / python.name / "site-packages"
    (packages / "dependencies.pth").write_text(f"{_DEPENDENCIES}\n")
    wheel = await asyncio.to_thread(_wheel)
    shutil.copy(wheel, made.root / "opt")
    pip = (COMMAND.with_name("python"), "-m", "pip", "--quiet", "--disable-pip-version-check")
    await made.run(*pip, "install", "--no-deps", "--ignore-installed", "--no-index", Path("/opt", wheel.name))


@functools.cache
def _wheel() -> Path:
    """Of this tree, built apart from it."""
    folder = Path(tempfile.mkdtemp(prefix="ipamd-wheel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tree = folder / "tree"
    tree.mkdir()
    for name in _SOURCES:
        source = TREE / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", tree], check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def _child_of(pid: int) -> int:
    """0 for none."""
    found = subprocess.run(["pgrep", "--parent", str(pid)], check=False, capture_output=True, text=True)
    return int((found.stdout.split() or ["0"])[0])
