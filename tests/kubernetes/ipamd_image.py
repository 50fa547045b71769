"""ipamd's own image for the DaemonSet, of this checkout: what deploy/image/Containerfile makes, without podman.

Below it is a small Debian with Python and nft; on it /opt/ipamd, a virtual environment with the packages that ipamd
needs, copied from the one that runs this.
"""

from __future__ import annotations

import compileall
import hashlib
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from cni_shim.static import build
from ipamd.sim.runtimes.docker_archive import PATH, Image, Layer

ROOT: Final = Path(__file__).resolve().parents[2]
# As containerd completes the name in deploy/kubernetes/ipamd.yaml.
IMAGE: Final = Image(
    ("docker.io/library/ipamd:0.1.0",),
    ("python", "ipamd"),
    entrypoint=("ipamd",),
    command=("run",),
    path=f"/opt/ipamd/bin:{PATH}",
)
_PACKAGES: Final = ("ipamd", "cni_shim")
_LIBRARY: Final = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
_SCRIPT: Final = "#!/opt/ipamd/bin/python3\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"


class Unmade(Exception):
    """The image can't be made on this machine; the message says why."""


def layer() -> Layer:
    """/opt/ipamd, with bytecode that counts. Raises `Unmade`."""
    made = Layer()
    made.folder("opt")
    with tempfile.TemporaryDirectory(prefix="ipamd-image-") as folder:
        environment = Path(folder, "opt", "ipamd")
        _environment(environment)
        for each in needed():
            if each.name not in _PACKAGES:  # whose files setuptools may list in the tree
                _copy(each, environment / _LIBRARY)
        for package in _PACKAGES:
            shutil.copytree(
                ROOT / package,
                environment / _LIBRARY / package,
                ignore=shutil.ignore_patterns("__pycache__", "*.[ch]"),
            )
        compileall.compile_dir(environment, maxlevels=20, quiet=2, stripdir=folder, prependdir="/", workers=0)
        made.tree(Path(folder))
    return made


def digest() -> str:
    """It changes with all that `layer` copies."""
    made = hashlib.sha256()
    for each in needed():
        made.update(f"{each.name} {each.version}\0".encode())
    for name in (*_PACKAGES, "systemd"):
        for file in sorted((ROOT / name).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                made.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return made.hexdigest()


def needed() -> list[Distribution]:
    """ipamd's distribution and those that it needs, with what these need, without extras that nobody asks for.

    Raises `Unmade`."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement("ipamd")]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in found:
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                raise Unmade(f"the package {name} is not in {sys.prefix}; run make setup") from None
        waiting += _requirements(found[name], requirement.extras)
    return [found[name] for name in sorted(found)]


def _requirements(of: Distribution, extras: set[str]) -> Iterator[Requirement]:
    for text in of.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            yield requirement


def _environment(folder: Path) -> None:
    """A virtual environment without packages but with ipamd's commands and files of data. Raises `Unmade`."""
    (folder / _LIBRARY).mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to("/usr/bin/python3")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for command, target in project["project"]["scripts"].items():
        script = folder / "bin" / command
        script.write_text(_SCRIPT.format(module=target.partition(":")[0]))
        script.chmod(0o755)
    for place, patterns in project["tool"]["setuptools"]["data-files"].items():
        for file in (file for pattern in patterns if not pattern.startswith("build/") for file in ROOT.glob(pattern)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, folder / place)
    try:
        build.build(folder / "libexec" / "ipamd" / "ipamd-cni")
    except build.BuildError as error:
        raise Unmade(
            f"the plugin's static executable, which the DaemonSet installs, can't be built: {error}"
        ) from None


def _copy(of: Distribution, library: Path) -> None:
    """Its files, with their times of modification; commands, which are outside of the library, are left out."""
    for file in of.files or ():
        source = Path(str(of.locate_file(file)))
        editable = file.name.startswith("__editable__") or source.suffix == ".pth"
        if ".." not in file.parts and not editable and source.is_file():
            target = library / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
