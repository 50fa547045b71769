"""The plugin as a launcher and one file beside it that holds its compiled modules:

    BIN_DIR/ipamd-cni                                    #!/usr/bin/python3.11 -ISc...
    BIN_DIR/ipamd-cni.d/<version>/ipamd_cni_modules.pyc

The interpreter's start is most of what the plugin costs, so the first line names a real interpreter and `-IS` keeps
site-packages out. The modules are compiled by that interpreter and stand there without sources. A version is never
changed in place: a new one gets its own folder and the launcher is renamed over the old one last. The whole program
stands in the first line, as the word after `-c`: once the kernel has read that, the file is not opened again, so a
plugin that is running or starts in between has one whole version, whatever comes in the launcher's place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cni_shim.static import block
from ipamd.install.placing import InstallError, replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipamd.install.interpreter import Interpreter

MODULES = "ipamd_cni_modules.pyc"
# Beside it: the settings and the digest of the sources, for `ipamctl doctor`.
STAMP = "installed.json"
# BINPRM_BUF_SIZE less its final newline, execve(2): before Linux 5.1, and since.
SHORT_SHEBANG, LONGEST_SHEBANG = 127, 255

# argv[1] is the launcher's own path, from the kernel; imported so, the file of the modules runs the plugin. Of the
# standard library's three places the last stays, that of the C modules: the plugin imports no others.
_LAUNCHER = "#!{interpreter} -IScimport sys;sys.path[:2]=[sys.argv[1]+'.d/{version}'];import ipamd_cni_modules\n"

# One file to find, open and read instead of ten: 0.2 ms of CPU time in an ADD (most of it while the daemon works), as
# much of a DEL's whole time. CODES: name -> code as marshal writes it.
_BUNDLE = """\
import sys
from _frozen_importlib import ModuleSpec
from marshal import loads
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in CODES:
            return ModuleSpec(name, Finder, is_package=name == "cni_shim")
    @staticmethod
    def create_module(spec):
        pass
    @staticmethod
    def exec_module(module):
        exec(loads(CODES[module.__name__]), module.__dict__)
sys.meta_path.insert(0, Finder)
"""
_RUN = """\
if sys.argv[0] == "-c" and sys.argv[1:]:
    from cni_shim.main import main
    main()
"""

# Run by the interpreter in the folder of the sources and the bundle's text; its end comes on standard input. The rest
# of argv: the modules' names.
_COMPILE = """
import marshal, py_compile, sys
codes = {}
for name in sys.argv[1:]:
    module = "cni_shim" if name == "__init__" else "cni_shim." + name
    with open(name + ".py", "rb") as file:
        code = compile(file.read(), f"cni_shim/{name}.py", "exec", dont_inherit=True, optimize=2)
    codes[module] = marshal.dumps(code)
with open("bundle", "a") as file:
    file.write(f"CODES = {codes!r}\\n" + sys.stdin.read())
py_compile.compile("bundle", "ipamd_cni_modules.pyc", "ipamd_cni_modules", True, 2,
                   invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""


def install_launcher(plugin: Path, python: Interpreter, modules: dict[str, str], settings: block.Settings) -> Path:
    """Install it as `plugin`; the folder of its file of modules. Raises InstallError, OSError."""
    site = (
        '"""What `ipamd install` fixed for this node."""\n\n'
        f"SOCKET = {settings.socket!r}\nSPOOL_DIR = {settings.spool_dir!r}\n"
        f"LOG = {settings.log!r}\nADD_SECONDS = {settings.add_seconds!r}\n"
        f"DAEMON_SET = {settings.daemon_set!r}\n"
    )
    sources = modules | {"installed": site}
    digest = hashlib.sha256(repr((python, _BUNDLE, _RUN, sorted(sources.items()))).encode()).hexdigest()[:16]
    versions = folder_of_versions(plugin)
    text = _LAUNCHER.format(interpreter=python.path, version=digest)
    if len(text) > _longest_shebang():
        raise InstallError(f"{python.path}: a path of this length can't stand in a script's first line")
    versions.mkdir(parents=True, exist_ok=True)
    versions.chmod(0o755)
    stamp = json.dumps({"sources": block.digest(modules), "settings": settings._asdict()})
    _compile(python, sources, stamp, versions / digest)
    before = used_before(plugin)
    replace(plugin, text.encode(), 0o755)
    remove_versions(plugin, keep=lambda name: name == digest or name in before)
    return versions / digest


def _longest_shebang() -> int:
    release = [int(number) for number in re.findall(r"\d+", os.uname().release)[:2]]
    return LONGEST_SHEBANG if release >= [5, 1] else SHORT_SHEBANG


def folder_of_versions(plugin: Path) -> Path:
    return plugin.with_name(f"{plugin.name}.d")


def used_before(plugin: Path) -> str:
    """A text in which the name of the version stands that the plugin uses now; of other packagings: none."""
    text = plugin.read_bytes()[:4096] if plugin.is_file() else b""
    return text.decode(errors="replace") if text.startswith(b"#!") else ""


def remove_versions(plugin: Path, keep: Callable[[str], bool]) -> None:
    """Versions before the last one, which may still run and import what it did not need so far."""
    versions = folder_of_versions(plugin)
    if not versions.is_dir():
        return
    for path in versions.iterdir():
        if not path.name.startswith(".") and not keep(path.name):
            shutil.rmtree(path, ignore_errors=True)
    if not any(versions.iterdir()):
        versions.rmdir()


def _compile(python: Interpreter, sources: dict[str, str], stamp: str, target: Path) -> None:
    """Compile into `target`, which appears whole. Its name follows from its content, so an existing one is right."""
    if target.is_dir():
        return
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as name:
        work = Path(name)
        for module, text in sources.items():
            (work / f"{module}.py").write_text(text)
        (work / "bundle").write_text(_BUNDLE)
        run = subprocess.run(
            [python.path, "-IS", "-c", _COMPILE, *sources],
            cwd=work,
            input=_RUN,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise InstallError(f"{python.path} can't compile the plugin: {run.stderr.strip()}")
        made = work / "made"
        made.mkdir()
        made.chmod(0o755)
        (work / MODULES).rename(made / MODULES).chmod(0o644)
        (made / STAMP).write_text(stamp)
        (made / STAMP).chmod(0o644)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else: another installation of the same was quicker
                raise
