"""Dependencies point one way (design, section 3): the rooms may import only what stands here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Room -> the project's modules that it may import. A prefix stands for everything below it.
ALLOWED = {
    "ipamd/pool": ("ipamd.pool",),
    "ipamd/cloud": (
        "ipamd.cloud",
        "ipamd.telemetry.conditions",
        "ipamd.telemetry.histogram",
        "ipamd.pool.cidrs",
        "ipamd.pool.model",
        "ipamd.pool.quoting",
        "ipamd.settings",
    ),
    "ipamd/host": ("cni_shim.names", "ipamd.host", "ipamd.neighbours.peer", "ipamd.pool.model", "ipamd.settings"),
    "ipamd/doctor": (
        "cni_shim.names",
        "ipamd.neighbours.chain",
        "ipamd.cloud",
        "ipamd.doctor",
        "ipamd.host",
        "ipamd.install.hosting",
        "ipamd.install",
        "ipamd.neighbours.kubelet",
        "ipamd.settings",
        "ipamd.neighbours.peer",
    ),
    "ipamd/config": ("ipamd.neighbours.chain", "ipamd.config", "ipamd.pool.quoting", "ipamd.settings"),
    "ipamd/policy": (
        "ipamd.cloud.port",
        "ipamd.telemetry.conditions",
        "ipamd.host",
        "ipamd.policy",
        "ipamd.pool.model",
        "ipamd.pool.quoting",
        "ipamd.process.supervision",
        "ipamd.settings",
        "ipamd.host.veth",
    ),
    "ipamd/process": ("ipamd",),
    "ipamd/ledger": ("ipamd.telemetry.histogram", "ipamd.ledger", "ipamd.pool.model"),
    "ipamd/api": ("ipamd", "cni_shim.names"),
    "ipamd/ctl": ("ipamd", "ipamd.ctl", "ipamd.api.v1"),
    "ipamd/kubectl": (),
    "cni_shim": ("cni_shim",),
}
# Nothing that runs on a real instance may lean on the simulator.
NOT_BELOW_SIM = (
    "ipamd/api",
    "ipamd/ctl",
    "ipamd/cloud",
    "ipamd/doctor",
    "ipamd/host",
    "ipamd/ledger",
    "ipamd/policy",
    "ipamd/pool",
    "ipamd/process",
    "cni_shim",
)


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            # `from ipamd.pool import effects` names a module or a value: judge by both.
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def modules(room: str) -> list[Path]:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, room
    return files


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    for file in modules(room):
        for module in imports(file):
            if within(module, ("ipamd", "cni_shim")):
                assert within(module, ALLOWED[room]), f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("room", NOT_BELOW_SIM)
def test_nothing_real_leans_on_the_simulator(room: str) -> None:
    for file in modules(room):
        assert not any(within(module, ("ipamd.sim",)) for module in imports(file)), file


def test_the_pool_is_pure() -> None:
    impure = ("asyncio", "time", "datetime", "os", "socket", "threading", "subprocess", "structlog", "uuid")
    for file in modules("ipamd/pool"):
        assert not any(within(module, impure) for module in imports(file)), file


@pytest.mark.parametrize("room", ["cni_shim", "ipamd/kubectl"])
def test_what_is_copied_elsewhere_needs_only_the_stdlib(room: str) -> None:
    for file in modules(room):
        for module in imports(file):
            top = module.split(".")[0]
            assert top == room or top in sys.stdlib_module_names, f"{file}: {module}"
