"""Packages of Debian releases other than the machine's: fetched and unpacked in a folder, with nothing installed.

apt is given a configuration, lists and a cache of its own, and the mirror and keys that the machine itself uses.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipamd-tests" / "debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PATIENCE = 300.0  # seconds for the lists of a release, and again for a package


class Unfetched(Exception):
    """The package can't be had; the message says why."""


def unpacked(release: str, package: str) -> Path:
    """The folder with the files of a release's package. Skips the test when it can't be fetched.

    Kept for later runs: what was fetched once is not looked for again.
    """
    found = _found(release, package)
    if isinstance(found, Unfetched):
        pytest.skip(f"{package} of Debian {release} can't be fetched: {found}")
    return found


@functools.cache
def _found(release: str, package: str) -> Path | Unfetched:
    """What can't be fetched is not tried again for each test: without a network that takes its time."""
    folder = _CACHE / release
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / package
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs side by side one fetches
        if not root.exists():
            try:
                _fetch(release, package, folder, root)
            except Unfetched as why:
                return why
    return root


def _fetch(release: str, package: str, folder: Path, root: Path) -> None:
    new = root.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    with _apt(release, folder) as (archives, environment):
        _run(["apt-get", "download", package], archives, environment)
        _unpack(archives, new)
    new.rename(root)


def unpack_system(release: str, packages: Collection[str], root: Path) -> None:
    """Write the packages' files, and those of all packages that they depend on, into the empty folder `root`.

    /bin, /sbin and /lib are links to the folders in /usr. No package's scripts run, so it lacks what these make, such
    as alternatives. Raises `Unfetched`.
    """
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    with _apt(release, root.parent) as (archives, environment):
        _run(
            ["apt-get", "install", "--download-only", "-y", "--no-install-recommends", *packages],
            archives,
            environment,
        )
        _unpack(archives, root)


@contextmanager
def _apt(release: str, parent: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder for archives, and apt's environment: it knows the release, in which nothing is installed."""
    if shutil.which("apt-get") is None or not _KEYRING.exists():
        raise Unfetched("no apt with Debian's keys on this machine")
    with tempfile.TemporaryDirectory(prefix="apt-", dir=parent) as name:  # hundreds of megabytes of lists
        apt = Path(name)
        for part in ("lists/partial", "archives/partial", "parts"):
            (apt / part).mkdir(parents=True)
        (apt / "status").touch()
        (apt / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {release} main\n")
        settings = {
            "Dir::Etc::SourceList": apt / "sources.list",
            "Dir::Etc::SourceParts": apt / "parts",
            "Dir::State::Lists": apt / "lists",
            "Dir::State::status": apt / "status",
            "Dir::Cache": apt,
            "Dir::Cache::archives": apt / "archives",
            "APT::Sandbox::User": "root",  # the folder is nobody else's
            "Acquire::Languages": "none",
            "Acquire::Retries": 1,
            "APT::Update::Error-Mode": "any",  # else lists that can't be had are no failure
        }
        configuration = apt / "apt.conf"
        configuration.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        environment = os.environ | {"APT_CONFIG": str(configuration), "LC_ALL": "C.UTF-8"}
        _run(["apt-get", "update"], apt, environment)
        yield apt / "archives", environment


def _unpack(archives: Path, root: Path) -> None:
    """As dpkg does it, which follows links to folders."""
    script = 'set -o pipefail; dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2"'
    for archive in sorted(archives.glob("*.deb")):
        _run(["bash", "-c", script, archive.name, str(archive), str(root)], archives, dict(os.environ))


def _mirror() -> str:
    """Where the machine gets its own Debian packages from."""
    form = "$(LABEL) $(REPO_URI)"
    text = _run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], Path("/"), dict(os.environ))
    for line in text.splitlines():
        label, _, uri = line.partition(" ")
        if label == "Debian":
            return uri
    raise Unfetched("apt knows no Debian mirror here (apt-get update has not run, or another distribution)")


def _run(argv: list[str], cwd: Path, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=environment, timeout=_PATIENCE, check=False, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        raise Unfetched(f"{argv[0]} {argv[1]}: not done within {_PATIENCE:.0f} s") from None
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise Unfetched(f"{argv[0]} {argv[1]}: {words[-1]}")
    return done.stdout


def containerd_version(folder: Path) -> tuple[int, ...]:
    """Skips the test when the release's containerd does not run here: it may need a newer libc."""
    done = subprocess.run([folder / "containerd", "--version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{folder / 'containerd'} does not run on this machine: {done.stderr.strip()}")
    number = done.stdout.split()[2].lstrip("v").split("~")[0].split("+")[0]
    return tuple(int(part) for part in number.split("-")[0].split("."))
