"""Installs and removes the plugin, in the packaging asked for or in the one that starts quickest on this host."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Literal

from cni_shim.installed import ADD_SECONDS
from cni_shim.names import SPOOL
from cni_shim.static import block
from ipamd.install.executable import ask_version, find_executable, install_executable
from ipamd.install.installed import installed
from ipamd.install.interpreter import Interpreter, find_interpreter, find_interpreters
from ipamd.install.launcher import folder_of_versions, install_launcher, used_before
from ipamd.install.placing import InstallError, not_writable, remove
from ipamd.neighbours.chain import PLUGIN

SOCKET = Path("/run/ipamd/ipamd.sock")
STARTS = 9  # of each candidate, an odd number, to find the quickest: 0.1 s in all

Packaging = Literal["auto", "launcher", "static"]


@dataclass(frozen=True, slots=True)
class InstalledPlugin:
    """The plugin's file. `interpreter` and the folder `modules` belong to a launcher, `executable` is what a static
    one was made from. `measured`: milliseconds that each candidate took to start, if they were compared; `kept`: they
    were not, as an earlier comparison chose what is there; `passed_over`: why others were none."""

    launcher: Path
    interpreter: Interpreter | None = None
    modules: Path | None = None
    executable: Path | None = None
    measured: tuple[tuple[str, float], ...] = ()
    kept: bool = False
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One way to package the plugin: exactly one of the two is set."""

    interpreter: Interpreter | None = None
    executable: Path | None = None

    def __str__(self) -> str:
        if self.interpreter is not None:
            return f"launcher with {self.interpreter.path}"
        return f"static {self.executable}"


def install_plugin(
    bin_dir: Path,
    socket: Path = SOCKET,
    spool_dir: Path | None = None,
    *,
    packaging: Packaging = "launcher",
    interpreter: Path | None = None,
    executable: Path | None = None,
    add_seconds: float = ADD_SECONDS,
    log: Path | None = None,
    daemon_set: bool = False,
) -> InstalledPlugin:
    """Install the plugin, or renew it. `spool_dir` None: `released` beside the socket; `log` None: no log.
    `daemon_set`: the daemon is a pod of the DaemonSet.

    `packaging` "auto" compares what there is: the static executable and the launcher. Raises InstallError.
    """
    modules = block.sources()
    if "main" not in modules:
        raise InstallError(
            "the plugin's modules are here without sources to compile; install ipamd again, sources included"
        )
    settings = _settings(socket, spool_dir or socket.parent / SPOOL, log, add_seconds)._replace(daemon_set=daemon_set)
    candidates, passed_over = _candidates(packaging, interpreter, executable, modules)
    try:
        bin_dir.mkdir(parents=True, exist_ok=True)
        measured: tuple[tuple[str, float], ...] = ()
        chosen = candidates[0]
        kept = _chosen_before(bin_dir / PLUGIN, candidates) if len(candidates) > 1 else None
        if kept is not None:
            chosen = kept
        elif len(candidates) > 1:
            times = _measure(bin_dir, candidates, modules, settings)
            measured = tuple((str(candidate), time) for candidate, time in times)
            chosen = times[0][0]
        done = _install(bin_dir / PLUGIN, chosen, modules, settings)
        return replace(done, measured=measured, kept=kept is not None, passed_over=passed_over)
    except OSError as error:
        raise not_writable(bin_dir, error) from None


def remove_plugin(bin_dir: Path) -> list[Path]:
    """Remove it, in whichever packaging; what was there. Raises InstallError."""
    plugin = bin_dir / PLUGIN
    versions = folder_of_versions(plugin)
    removed = [plugin] if remove(plugin) else []
    try:
        shutil.rmtree(versions)
    except FileNotFoundError:
        return removed
    except OSError as error:
        raise not_writable(bin_dir, error) from None
    return [*removed, versions]


def _settings(socket: Path, spool_dir: Path, log: Path | None, add_seconds: float) -> block.Settings:
    for path in (socket, spool_dir, log):
        if path is not None and not path.is_absolute():
            raise InstallError(f"{path}: the plugin runs in any folder, so its paths must be absolute")
    if len(os.fsencode(socket)) > block.LONGEST_SOCKET_PATH:
        raise InstallError(
            f"{socket}: longer than the {block.LONGEST_SOCKET_PATH} bytes that a socket's path may have"
        )
    return block.Settings(str(socket), str(spool_dir), str(log or ""), float(add_seconds))


def _candidates(
    packaging: Packaging, interpreter: Path | None, executable: Path | None, modules: dict[str, str]
) -> tuple[list[_Candidate], tuple[str, ...]]:
    """At least one, and why there are not more. Raises InstallError."""
    if packaging == "static":
        return [_Candidate(executable=find_executable(executable, modules))], ()
    if packaging == "launcher":
        return [_Candidate(interpreter=find_interpreter(interpreter))], ()
    found = []
    problems = []
    try:
        found.append(_Candidate(executable=find_executable(executable, modules)))
    except InstallError as error:
        problems.append(str(error))
    try:
        found += [_Candidate(interpreter=python) for python in find_interpreters(interpreter)]
    except InstallError as error:
        problems.append(str(error))
    if not found:
        raise InstallError("\n".join(problems))
    return found, tuple(problems)


def _chosen_before(plugin: Path, candidates: list[_Candidate]) -> _Candidate | None:
    """The one that the plugin is made from, if it is of these sources. None: compare them, also where the plugin is a
    launcher and there is an executable, which may have come since."""
    found = installed(plugin)
    if found is None or not found.current:
        return None
    launcher = used_before(plugin)
    executable = next((each for each in candidates if each.executable is not None), None)
    if not launcher:
        return executable
    if executable is not None:
        return None
    interpreter = launcher[2:].split(None, 1)[0]
    return next((each for each in candidates if each.interpreter and str(each.interpreter.path) == interpreter), None)


def _install(
    plugin: Path, candidate: _Candidate, modules: dict[str, str], settings: block.Settings
) -> InstalledPlugin:
    """Raises InstallError, OSError."""
    if candidate.interpreter is not None:
        folder = install_launcher(plugin, candidate.interpreter, modules, settings)
        return InstalledPlugin(plugin, interpreter=candidate.interpreter, modules=folder)
    assert candidate.executable is not None
    install_executable(plugin, candidate.executable, settings)
    return InstalledPlugin(plugin, executable=candidate.executable)


def _measure(
    bin_dir: Path, candidates: list[_Candidate], modules: dict[str, str], settings: block.Settings
) -> list[tuple[_Candidate, float]]:
    """Milliseconds that one run of VERSION takes (the median of some, in turns), the quickest candidate first.

    Measured is what would be installed, where it would be. Raises InstallError, OSError.
    """
    with tempfile.TemporaryDirectory(prefix=f".{PLUGIN}-", dir=bin_dir) as folder:
        plugins = []
        for number, candidate in enumerate(candidates):
            place = Path(folder, str(number))
            place.mkdir()
            plugins.append(_install(place / PLUGIN, candidate, modules, settings).launcher)
        times: list[list[float]] = [[] for _ in candidates]
        for _ in range(STARTS):
            for plugin, taken in zip(plugins, times, strict=True):
                taken.append(_start(plugin))
    medians = [sorted(taken)[STARTS // 2] for taken in times]
    return sorted(zip(candidates, medians, strict=True), key=lambda pair: pair[1])


def _start(plugin: Path) -> float:
    """Milliseconds of one run. The runner's own part of it is the same for all candidates."""
    started = perf_counter()
    run = ask_version(plugin)
    taken = (perf_counter() - started) * 1000
    if run.returncode:
        raise InstallError(
            f"{plugin} ended with status {run.returncode}: {(run.stdout + run.stderr).decode('utf-8', 'replace')}"
        )
    return taken
