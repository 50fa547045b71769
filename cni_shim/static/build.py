"""Build the static executable of the plugin: `make shim`, or `python -m cni_shim.static.build [--output FILE]`.

Compiles the plugin's modules to bytecode, writes that as C arrays, and links main.c with them and the interpreter's
static library into one file; runs that to record a started interpreter, and puts the record into it (see main.c).
Needs what Debian 12 has in gcc and libpython3.11-dev; the modules are compiled by the Python that runs this, so that
has to be the 3.11 that the library belongs to.
"""

import argparse
import ast
import json
import marshal
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cni_shim import installed
from cni_shim.static import block

OUTPUT = Path("build/ipamd-cni")
HERE = Path(__file__).parent
C_MODULES = {
    "_signal",
    "_socket",
    "_struct",
    "errno",
    "fcntl",
    "posix",
    "sys",
    "time",
}  # as in main.c; sys is always there
# namespace.py uses it only where posix has no setns(); main.c adds that.
NEVER_REACHED = {"_ctypes"}
# No replacing of malloc and memset by a calloc that is made of them.
COMPILE = ["-std=gnu11", "-O2", "-Wall", "-fno-pie", "-fno-builtin-malloc", "-c"]
LINK = ["-static", "-no-pie", "-Wl,-z,norelro", "-Wl,--strip-all"]


class BuildError(Exception):
    """The executable can't be built; the message says why and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the CNI plugin as one static executable.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the file to write (default: %(default)s)")
    args = parser.parse_args()
    try:
        build(args.output)
    except BuildError as error:
        sys.stderr.write(f"make shim: {error}\n")
        return 1
    sys.stdout.write(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB\n")
    return 0


def build(output: Path) -> None:
    """Write the executable. Raises BuildError."""
    library = find_library()
    modules = block.sources()
    for name, source in modules.items():
        check_imports(name, source, set(modules))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ipamd-cni-", dir=output.parent) as folder:
        work = Path(folder)
        (work / "frozen.h").write_text(frozen_header(modules))
        include = [f"-I{work}", f"-I{sysconfig.get_path('include')}"]
        for name in ("main", "heap"):
            _run("gcc", *COMPILE, *include, HERE / f"{name}.c", "-o", work / f"{name}.o")
        whole = work / "interpreter.o"
        _run("ld", "-r", "-T", HERE / "interpreter.ld", work / "main.o", work / "heap.o", library, "-o", whole)
        _run("gcc", *LINK, whole, "-lm", "-o", work / "first")
        (work / "record").write_bytes(_record(work / "first"))
        made = work / "ipamd-cni"
        _run("objcopy", "--update-section", f"interpreter={work / 'record'}", work / "first", made)
        made.replace(output)


def _record(first: Path) -> bytes:
    """The started interpreter. Nothing of the builder gets into it: no environment, no name, no folder (in which the
    C library would look for libraries: hence a file that is in none)."""
    descriptor = os.memfd_create("ipamd-cni")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(first.read_bytes())
        program = f"/proc/self/fd/{descriptor}"
        return _checked(
            subprocess.run([program], env={}, cwd="/", pass_fds=[descriptor], capture_output=True, check=False)
        )
    finally:
        os.close(descriptor)


def _run(*command: str | Path) -> None:
    _checked(subprocess.run(command, capture_output=True, check=False))


def _checked(run: subprocess.CompletedProcess[bytes]) -> bytes:
    """Its standard output. Raises BuildError."""
    if run.returncode:
        said = (run.stderr + run.stdout[:2000]).decode(errors="replace").strip()
        raise BuildError(f"{run.args[0]} failed with status {run.returncode}: {said}")
    return run.stdout


def find_library() -> Path:
    """The interpreter's static library, and a compiler beside it. Raises BuildError."""
    if sys.version_info[:2] != (3, 11) or sys.implementation.name != "cpython":
        raise BuildError(
            f"the executable holds CPython 3.11, and {sys.executable} is {sys.implementation.name} "
            f"{'.'.join(map(str, sys.version_info[:2]))}: build it with Debian 12's /usr/bin/python3, there or in a "
            "container of it; without it `ipamd install` takes the launcher, for Python 3.11 and newer"
        )
    library = Path(sysconfig.get_config_var("LIBPL") or "/") / "libpython3.11.a"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not library.is_file() or not header.is_file():
        raise BuildError(f"{library} or {header} is missing (Debian 12: apt-get install libpython3.11-dev)")
    try:
        subprocess.run(["gcc", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise BuildError("there is no working gcc (Debian 12: apt-get install gcc libc6-dev)") from None
    if missing := C_MODULES - {"sys"} - _modules_in(library):
        raise BuildError(
            f"{library} lacks the modules {', '.join(sorted(missing))}: this Python has them as shared libraries; "
            "build with the distribution's (Debian 12: /usr/bin/python3 -m cni_shim.static.build)"
        )
    return library


def _modules_in(library: Path) -> set[str]:
    """The C modules whose initialisers it defines. Raises BuildError."""
    listed = _checked(subprocess.run(["nm", "-g", "--defined-only", library], capture_output=True, check=False))
    return {
        line.rpartition(" PyInit_")[2] for line in listed.decode(errors="replace").splitlines() if " PyInit_" in line
    }


def check_imports(name: str, source: str, known: set[str]) -> None:
    """What main.c could not import would show only when a pod starts. Raises BuildError."""
    for node in imports(ast.parse(source)):
        where = f"cni_shim/{name}.py, line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "cni_shim.installed":
            raise BuildError(f"{where}: settings are known after all imports only: read installed.NAME then")
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif node.module == "cni_shim":
            wanted = [f"cni_shim.{alias.name}" for alias in node.names]
        else:
            wanted = [node.module or "."]
        for module in wanted:
            package, _, rest = module.partition(".")
            ours = package == "cni_shim" and rest in known | {"installed"}
            if ours and isinstance(node, ast.Import):
                raise BuildError(f"{where}: main.c knows `from {package} import {rest}`, not `import {module}`")
            if not ours and module not in C_MODULES | NEVER_REACHED:
                raise BuildError(f"{where}: {module} is not in the executable (C_MODULES, and its table in main.c)")


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports but those for the type checker alone, below `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (
            isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
        ):
            yield from imports(child)


def frozen_header(modules: dict[str, str]) -> str:
    """C text: the modules' bytecode, the digest of their sources, and the default settings."""
    arrays, rows = [], []
    for module, source in modules.items():
        name = "cni_shim" if module == "__init__" else f"cni_shim.{module}"
        code = marshal.dumps(compile(source, f"{name.replace('.', '/')}.py", "exec", dont_inherit=True, optimize=2))
        arrays.append(f"static const unsigned char code_{module}[] = {{{','.join(map(str, code))}}};")
        rows.append(f'    {{"{name}", code_{module}, {len(code)}}},')
    rows.append("    {NULL, NULL, 0},")
    settings = {
        "SOURCES_DIGEST": block.digest(modules),
        "SOCKET": installed.SOCKET,
        "SPOOL_DIR": installed.SPOOL_DIR,
        "LOG": installed.LOG,
        "ADD_SECONDS": installed.ADD_SECONDS,
        "DAEMON_SET": int(installed.DAEMON_SET),
    }
    defines = [f"#define {name} {json.dumps(value)}" for name, value in settings.items()]
    table = "static const struct frozen_module FROZEN_MODULES[] = {"
    return "\n".join([*defines, *arrays, table, *rows, "};", ""])


if __name__ == "__main__":
    sys.exit(main())
