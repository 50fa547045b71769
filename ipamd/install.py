"""`ipamd install`: puts the CNI plugin, its network configuration, the systemd unit and the drop-ins that keep other
managers of the network off it where the node expects them.

The plugin is a small launcher and a folder of compiled modules beside it:

    BIN_DIR/ipamd-cni                            #!/usr/bin/python3.11 -IS
    BIN_DIR/ipamd-cni.d/<version>/cni_shim/*.pyc

The interpreter's start is most of what the plugin costs, so the first line names a real interpreter (never a shell
wrapper or a virtual environment) and `-IS` keeps site-packages out. The modules are compiled by that interpreter and
stand there without sources. A version is never changed in place: a new one gets its own folder and the launcher is
renamed over the old one last, so a plugin that is running, or starts in between, always sees one whole version.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni_shim import names

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

PLUGIN = "ipamd-cni"
CONFLIST = "10-ipamd.conflist"
UNIT = "ipamd.service"
BIN_DIR = Path("/opt/cni/bin")
SOCKET = Path("/run/ipamd/ipamd.sock")
UNIT_DIR = Path("/etc/systemd/system")
ETC = Path("/etc")
# Below /etc, and in the source tree below systemd/etc. Each tells in its own words what it is for.
DROP_INS = (
    "systemd/networkd.conf.d/50-ipamd.conf",
    "systemd/network/05-ipamd-pods.network",
    "systemd/network/05-ipamd-pods.link",
    "NetworkManager/conf.d/50-ipamd.conf",
)
ADD_SECONDS = 35.0  # the daemon's longest wait by default (pool.allocate_wait, 30 s) and time to plumb or to undo
DISTRIBUTION_PYTHON = Path("/usr/bin/python3")
OLDEST_PYTHON = (3, 11)
LONGEST_SOCKET_PATH = 107  # sockaddr_un.sun_path less its final zero, unix(7)
LONGEST_SHEBANG = 255  # BINPRM_BUF_SIZE less its final newline, execve(2)

# 1.0.0 is understood by all runtimes in use; containerd 1.6 and podman 4 refuse results of 1.1.0. libcni takes
# the highest version that it knows from the list since 1.2 (and STATUS and GC with it), and ignores the list before.
_NETWORK = {
    "cniVersion": "1.0.0",
    "cniVersions": ["1.0.0", "1.1.0"],
    "name": "ipamd",
    "plugins": [{"type": PLUGIN}],
}

# Of the standard library's folders the plugin needs that of the C modules, if they are not built in.
_LAUNCHER = """\
#!{interpreter} -IS
import sys
sys.path[:] = [__file__.rpartition("/")[0] + "/{folder}", *{extensions!r}]
from cni_shim.main import main
main()
"""

# Run by the candidate with -IS. Lines: major and minor version, magic number of compiled files, folders of C modules.
_PROBE = """
import sys, _ctypes, _signal, _socket, _struct, importlib.util
files = [getattr(module, "__file__", None) for module in (_ctypes, _signal, _socket, _struct)]
folders = sorted({file.rpartition("/")[0] for file in files if file})
print(*sys.version_info[:2], importlib.util.MAGIC_NUMBER.hex(), *folders, sep="\\n")
"""

_COMPILE = """
import py_compile, sys
for name in sys.argv[3:]:
    py_compile.compile(f"{sys.argv[1]}/{name}.py", f"{sys.argv[2]}/{name}.pyc", f"cni_shim/{name}.py", True, 2,
                       invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""


class InstallError(Exception):
    """The installation can't be done; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A real Python interpreter: its resolved path, (major, minor), the magic number of its compiled files, and the
    folders of those C modules that are not built in."""

    path: Path
    version: tuple[int, int]
    magic: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InstalledPlugin:
    launcher: Path
    modules: Path
    interpreter: Interpreter


def find_interpreter(wanted: Path | None = None) -> Interpreter:
    """The interpreter to run the plugin: `wanted`; else the distribution's, which is built for speed; else the one
    that this process runs on. Raises InstallError."""
    if wanted is not None:
        return _probe(wanted)
    problems = []
    for candidate in (DISTRIBUTION_PYTHON, Path(getattr(sys, "_base_executable", sys.executable))):
        try:
            return _probe(candidate)
        except InstallError as error:
            problems.append(str(error))
    raise InstallError("\n".join([*problems, "name a Python 3.11 or later with --interpreter"]))


def _probe(candidate: Path) -> Interpreter:
    path = candidate.resolve()
    try:
        with path.open("rb") as file:
            binary = file.read(4) == b"\x7fELF"
    except OSError as error:
        raise InstallError(f"{candidate}: {error.strerror}") from None
    if not binary:
        raise InstallError(f"{candidate} is a script around an interpreter, not the interpreter itself")
    if len(f"#!{path} -IS") > LONGEST_SHEBANG or any(character.isspace() for character in str(path)):
        raise InstallError(f"{path}: a path with spaces or of this length can't stand in a script's first line")
    unusable = f"{path} is no Python interpreter that the plugin could use"
    try:
        run = subprocess.run([path, "-IS", "-c", _PROBE], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{unusable}: {error}") from None
    lines = run.stdout.splitlines()
    if run.returncode or len(lines) < 3:
        reason = (run.stderr.strip().splitlines() or ["it does not answer as Python does"])[-1]
        raise InstallError(f"{unusable}: {reason}")
    major, minor, magic, *folders = lines
    version = (int(major), int(minor))
    if version < OLDEST_PYTHON:
        raise InstallError(f"{path} is Python {major}.{minor}; the plugin needs 3.11 or later")
    return Interpreter(path, version, magic, tuple(folders))


def install_plugin(
    bin_dir: Path,
    socket: Path = SOCKET,
    spool_dir: Path | None = None,
    *,
    interpreter: Path | None = None,
    add_seconds: float = ADD_SECONDS,
    log: Path | None = None,
) -> InstalledPlugin:
    """Install the plugin, or renew it. `spool_dir` None: `released` beside the socket; `log` None: no log.

    Raises InstallError.
    """
    spool_dir = spool_dir or socket.parent / "released"
    for path in (socket, spool_dir, log):
        if path is not None and not path.is_absolute():
            raise InstallError(f"{path}: the plugin runs in any folder, so its paths must be absolute")
    if len(os.fsencode(socket)) > LONGEST_SOCKET_PATH:
        raise InstallError(f"{socket}: longer than the {LONGEST_SOCKET_PATH} bytes that a socket's path may have")
    python = find_interpreter(interpreter)
    site = (
        '"""What `ipamd install` fixed for this node."""\n\n'
        f"SOCKET = {str(socket)!r}\nSPOOL_DIR = {str(spool_dir)!r}\n"
        f"LOG = {str(log or '')!r}\nADD_SECONDS = {float(add_seconds)!r}\n"
    )
    sources = _sources() | {"installed": site}
    digest = hashlib.sha256(repr((python, sorted(sources.items()))).encode()).hexdigest()[:16]
    versions = bin_dir / f"{PLUGIN}.d"
    launcher = bin_dir / PLUGIN
    text = _LAUNCHER.format(interpreter=python.path, folder=f"{versions.name}/{digest}", extensions=python.extensions)
    try:
        versions.mkdir(parents=True, exist_ok=True)
        versions.chmod(0o755)
        _compile(python, sources, versions / digest)
        before = launcher.read_text(errors="replace") if launcher.is_file() else ""
        _write(launcher, text, 0o755)
        _remove_old(versions, keep=lambda name: name == digest or name in before)
    except OSError as error:
        raise _not_writable(bin_dir, error) from None
    return InstalledPlugin(launcher, versions / digest, python)


def _sources() -> dict[str, str]:
    """The plugin's modules: name -> source."""
    package = Path(names.__file__).parent
    sources = {file.stem: file.read_text() for file in sorted(package.glob("*.py"))}
    if not sources:
        raise InstallError(f"{package} holds no source files to compile; install ipamd again, sources included")
    return sources


def _compile(python: Interpreter, sources: dict[str, str], target: Path) -> None:
    """Compile into `target`, which appears whole. Its name follows from its content, so an existing one is right."""
    if target.is_dir():
        return
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as name:
        work = Path(name)
        source, package = work / "source", work / "modules" / "cni_shim"
        source.mkdir()
        package.mkdir(parents=True)
        for module, text in sources.items():
            (source / f"{module}.py").write_text(text)
        run = subprocess.run(
            [python.path, "-IS", "-c", _COMPILE, source, package, *sources],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise InstallError(f"{python.path} can't compile the plugin: {run.stderr.strip()}")
        for path in (package.parent, package):
            path.chmod(0o755)
        for path in package.iterdir():
            path.chmod(0o644)
        try:
            package.parent.rename(target)
        except OSError:
            if not target.is_dir():  # else: another installation of the same was quicker
                raise


def _remove_old(versions: Path, keep: Callable[[str], bool]) -> None:
    """Versions before the last one, which may still run and import what it did not need so far."""
    for path in versions.iterdir():
        if not path.name.startswith(".") and not keep(path.name):
            shutil.rmtree(path, ignore_errors=True)


def write_conflist(conf_dir: Path) -> Path:
    """Write the network configuration; its appearing is what tells a runtime that the node's network is there.

    Raises InstallError.
    """
    path = conf_dir / CONFLIST
    try:
        conf_dir.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(_NETWORK, indent=2) + "\n", 0o644)
    except OSError as error:
        raise _not_writable(conf_dir, error) from None
    return path


def write_unit(unit_dir: Path = UNIT_DIR, command: Path | None = None) -> Path:
    """Write the systemd unit for `command`, by default the `ipamd` command in use. Raises InstallError."""
    executable = _systemd_quoted(str(command or _own_command()))
    lines = [
        f"ExecStart={executable} run" if line.startswith("ExecStart=") else line
        for line in _shipped(UNIT, f"lib/systemd/system/{UNIT}").read_text().splitlines()
    ]
    path = unit_dir / UNIT
    try:
        unit_dir.mkdir(parents=True, exist_ok=True)
        _write(path, "\n".join(lines) + "\n", 0o644)
    except OSError as error:
        raise _not_writable(unit_dir, error) from None
    return path


def write_drop_ins(etc: Path = ETC) -> list[Path]:
    """Write what keeps systemd-networkd, udev and NetworkManager off our rules and links. Those that were written
    now: none of them by a second run. Raises InstallError."""
    written = []
    for name in DROP_INS:
        path = etc / name
        text = _shipped(f"etc/{name}", f"share/ipamd/etc/{name}").read_text()
        try:
            if path.is_file() and path.read_text(errors="replace") == text:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, text, 0o644)
        except OSError as error:
            raise _not_writable(etc, error) from None
        written.append(path)
    return written


def _shipped(in_tree: str, in_wheel: str) -> Path:
    """A file from systemd/ of the source tree, or from where the wheel's data files went."""
    tree = Path(__file__).resolve().parent.parent / "systemd" / in_tree
    data = Path(sysconfig.get_path("data")) / in_wheel
    for path in (tree, data):
        if path.is_file():
            return path
    raise InstallError(f"{tree.name} is neither in {tree.parent} nor in {data.parent}; install ipamd again")


def _own_command() -> Path:
    """The `ipamd` script: the one that runs, else the one beside this interpreter, else the one in PATH."""
    candidates = [Path(sys.argv[0]), Path(sys.executable).with_name("ipamd"), Path(shutil.which("ipamd") or "")]
    for path in candidates:
        if path.name == "ipamd" and path.is_file():
            return path.absolute()
    raise InstallError("the ipamd command is not to be found; install ipamd again, for instance with pip")


def _systemd_quoted(path: str) -> str:
    """For ExecStart=: systemd.service(5), section "Command lines"; specifiers begin with %."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(character.isspace() or character in "\\\"'" for character in path) else escaped


def _write(path: Path, text: str, mode: int) -> None:
    """Replace the file in one step; it is on disk before its name is."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def _not_writable(folder: Path, error: OSError) -> InstallError:
    return InstallError(f"{error.filename or folder}: {error.strerror}; is {folder} writable, and are you root?")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "install",
        help="install the CNI plugin, its configuration and the systemd unit",
        description="Install the CNI plugin on this node. A second run renews it.",
    )
    parser.add_argument(
        "--bin-dir", type=Path, default=BIN_DIR, help="the runtime's CNI plugins (default: %(default)s)"
    )
    parser.add_argument(
        "--conf-dir",
        type=Path,
        help="write 10-ipamd.conflist here now (default: the daemon does it once it can serve, see cni.conf_dir)",
    )
    parser.add_argument("--socket", type=Path, default=SOCKET, help="the daemon's socket (default: %(default)s)")
    parser.add_argument("--spool-dir", type=Path, help="the daemon's spool (default: 'released' beside the socket)")
    parser.add_argument(
        "--interpreter", type=Path, help="Python 3.11 or later to run the plugin (default: /usr/bin/python3 if it is)"
    )
    parser.add_argument(
        "--plugin-log",
        type=Path,
        metavar="FILE",
        help="a file for one line of JSON about each run of the plugin (default: none)",
    )
    parser.add_argument(
        "--systemd",
        action="store_true",
        help=f"write {UNIT_DIR / UNIT}, and drop-ins for other managers of the network",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out; 1 after an error, which is on standard error."""
    try:
        plugin = install_plugin(
            args.bin_dir, args.socket, args.spool_dir, interpreter=args.interpreter, log=args.plugin_log
        )
        version = ".".join(map(str, plugin.interpreter.version))
        _say(f"plugin   {plugin.launcher} (Python {version}, socket {args.socket})")
        if args.conf_dir is not None:
            _say(f"network  {write_conflist(args.conf_dir)}")
        if args.systemd:
            _say(f"unit     {write_unit()}")
            _install_drop_ins()
            _say(f"next     systemctl daemon-reload && systemctl enable --now {UNIT}")
    except InstallError as error:
        sys.stderr.write(f"ipamd install: {error}\n")
        return 1
    return 0


def _install_drop_ins() -> None:
    """Raises InstallError."""
    written = write_drop_ins()
    for path in written:
        _say(f"drop-in  {path}")
    if not written:
        _say(f"drop-ins in {ETC}: as they should be")
        return
    # While it runs with its old settings it removes our rules with the next link that it configures.
    _say("         in force once whoever reads them has: before pods run, and where it is active,")
    _say("next     systemctl restart systemd-networkd; systemctl reload NetworkManager; udevadm control --reload")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
