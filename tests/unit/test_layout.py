"""Which room may import which: an allow list for every room, and the README's table of rooms beside it.

A room is a package below `ipamd`, or a module of its root. The list is ordered from the bottom up: a room imports
only rooms that stand above it in the list, so they form no circle. `ipamd/settings.py` and `ipamd/config/` are one.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Room -> what it may import of the project: rooms, or modules of rooms. A prefix stands for everything below it, and
# "ipamd" for the version alone. Each room may import itself.
ALLOWED: dict[str, tuple[str, ...]] = {
    "cni_shim": (),
    "kubectl": (),
    "cli": (),
    "neighbours": (),
    "workload": (),
    "pool": (),
    "config": ("neighbours.chain", "pool.quoting"),
    "telemetry": ("config", "ipamd", "pool.quoting"),
    "cloud": ("config", "pool.cidrs", "pool.model", "pool.quoting", "telemetry"),
    "ledger": ("pool.model", "telemetry"),
    "host": ("cni_shim.names", "config", "neighbours", "pool.model"),
    "install": ("cni_shim", "neighbours"),
    "doctor": ("cloud", "cni_shim.names", "config", "host", "install", "neighbours"),
    "shell": (
        "cloud",
        "cni_shim.names",
        "cni_shim.served",
        "host",
        "ledger",
        "pool.effects",
        "pool.events",
        "pool.model",
        "pool.pool",
        "pool.serving",
        "pool.view",
        "telemetry",
    ),
    "policy": ("host", "pool.model", "pool.quoting", "telemetry"),
    "process": (
        "cloud.port",
        "config",
        "host",
        "install",
        "ledger",
        "neighbours",
        "pool.model",
        "shell",
        "telemetry",
    ),
    "api": (
        "cloud",
        "config",
        "host",
        "ipamd",
        "ledger",
        "policy",
        "pool.explain",
        "pool.model",
        "pool.quoting",
        "pool.trouble",
        "pool.view",
        "pool.words",
        "process",
        "shell",
        "telemetry",
    ),
    "metrics": (
        "api",
        "cloud",
        "host",
        "ipamd",
        "ledger",
        "pool.model",
        "pool.queue",
        "process",
        "shell",
        "telemetry",
    ),
    "daemon": (
        "api",
        "cloud",
        "cni_shim.names",
        "config",
        "host",
        "ipamd",
        "ledger",
        "metrics",
        "policy",
        "pool.events",
        "pool.model",
        "pool.pool",
        "process",
        "shell",
        "telemetry",
    ),
    "ctl": (
        "api.v1",
        "cli",
        "cloud",
        "config",
        "doctor",
        "host",
        "install",
        "ipamd",
        "neighbours",
        "pool.footprint",
        "pool.model",
        "workload",
    ),
    "sim/netns.py": (),
    "sim/wiring.py": (),
    "sim/runtimes": ("sim.netns",),
    "sim/ec2/rules": ("cloud.limits", "pool.model"),
    "sim/ec2": ("cloud", "pool.model", "sim.ec2.rules", "sim.wiring"),
    "sim/virtual": ("cloud", "pool", "shell.interpreter", "shell.urgency", "sim.ec2"),
    "sim/policy": ("cloud.limits", "config", "pool.model", "sim.virtual", "workload"),
    "sim": ("cloud.limits", "sim"),
    "sim/demo": ("api.v1", "cloud.limits", "cni_shim.names", "config", "ctl", "install", "sim"),
    "__main__.py": (
        "api.place",
        "cli",
        "config",
        "daemon",
        "host",
        "install",
        "ipamd",
        "ledger",
        "process",
        "sim",
        "telemetry",
    ),
}
ONE_ROOM = {"settings": "config"}

# Only what is part of the language, and no input or output, clock or chance of its own, belongs into these.
PURE = {
    "__future__",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "ipaddress",
    "itertools",
    "math",
    "random",  # the class Random: its instance comes from outside
    "re",
    "types",
    "typing",
}


def files_of(place: str) -> list[Path]:
    return sorted(file for file in (ROOT / place).rglob("*.py") if "_pb2" not in file.name)


def dotted(file: Path) -> str:
    """`ipamd/host/veth.py` as "host.veth", `ipamd/__init__.py` as "ipamd", others by their whole name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts[1:]) if parts[0] == "ipamd" and len(parts) > 1 else ".".join(parts)


FILES = [*files_of("ipamd"), *files_of("cni_shim")]
MODULES = {dotted(file) for file in FILES}


def imports(file: Path) -> set[str]:
    """The modules that a file imports, the project's as `dotted` names them, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            # `from ipamd.pool import effects` names a module or a value.
            found |= {_module(node.module or "", alias.name) for alias in node.names}
    return {name.removeprefix("ipamd.") for name in found}


def _module(package: str, name: str) -> str:
    whole = f"{package}.{name}"
    generated = re.search(r"\.(v1|aws|cri)$", package) is not None
    return whole if generated or whole.removeprefix("ipamd.") in MODULES else package


def ours(module: str) -> bool:
    return module == "ipamd" or module in MODULES or within(module, ("api.v1", "policy.aws", "sim.runtimes.cri"))


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def room_of(module: str) -> str:
    """The narrowest room of the list; "" for the package `ipamd` itself."""
    path = module.replace(".", "/")
    path = ONE_ROOM.get(path, path)
    rooms = [room for room in ALLOWED if path == room.removesuffix(".py") or path.startswith(f"{room}/")]
    return max(rooms, key=len, default="" if module == "ipamd" else f"no room of the list: {module}")


def of_the_room(room: str) -> list[Path]:
    return [file for file in FILES if room_of(dotted(file)) == room]


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_what_the_list_allows(room: str) -> None:
    files = of_the_room(room)
    assert files, "no such room"
    for file in files:
        for module in filter(ours, imports(file)):
            allowed = room_of(module) == room or within(module, ALLOWED[room]) or room_of(module) in ALLOWED[room]
            assert allowed, f"{file.relative_to(ROOT)} imports {module}"


def test_each_module_belongs_to_a_room_of_the_list() -> None:
    modules = MODULES - {"ipamd"}
    assert {room_of(module) for module in modules} == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_list_allows_nothing_that_nobody_imports(room: str) -> None:
    used = {module for file in of_the_room(room) for module in filter(ours, imports(file))}
    rooms = {room_of(module) for module in used}
    idle = [p for p in ALLOWED[room] if p not in rooms and not any(within(module, (p,)) for module in used)]
    assert not idle, "take it off the list"


def test_rooms_import_only_rooms_above_them_in_the_list() -> None:
    order = {room: place for place, room in enumerate(ALLOWED)}
    for room in ALLOWED:
        used = {room_of(module) for file in of_the_room(room) for module in filter(ours, imports(file))}
        upwards = {other for other in used - {room, ""} if order[other] > order[room]}
        assert not upwards, f"{room} imports {upwards}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {dotted(file): imports(file) & MODULES - {dotted(file)} for file in FILES}
    while leaves := [module for module, targets in arrows.items() if not targets & arrows.keys()]:
        for module in leaves:
            del arrows[module]
    assert not arrows, "these form a circle, or import one"


@pytest.mark.parametrize("room", ["pool", "sim/ec2/rules"])
def test_decisions_use_only_pure_modules_of_the_language(room: str) -> None:
    for file in of_the_room(room):
        others = {module.split(".")[0] for module in imports(file) if not ours(module)}
        assert others <= PURE, file


@pytest.mark.parametrize("room", ["cni_shim", "kubectl"])
def test_what_is_copied_elsewhere_needs_only_the_stdlib(room: str) -> None:
    for file in of_the_room(room):
        foreign = {module.split(".")[0] for module in imports(file) if not ours(module)} - sys.stdlib_module_names
        assert not foreign, file


def test_readme_names_each_room_and_no_other() -> None:
    table = re.search(r"^\| where \| what \|\n\|---\|---\|\n((?:\|.*\n)+)", (ROOT / "README.md").read_text(), re.M)
    assert table
    named = {path for row in table[1].splitlines() for path in re.findall(r"`([^`]+)`", row.split("|")[1])}
    rooms = {room.split("/")[0] for room in ALLOWED if not room.endswith(".py")} | set(ONE_ROOM)
    paths = {
        f"{room}/" if room == "cni_shim" else f"ipamd/{room}.py" if room in ONE_ROOM else f"ipamd/{room}/"
        for room in rooms
    }
    beside = {"proto/", "systemd/", "deploy/", "tests/"}
    assert named - beside == paths
    assert all((ROOT / path).exists() for path in named)
