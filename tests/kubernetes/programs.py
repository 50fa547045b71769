"""The programs of a real Kubernetes cluster and of its tests, built from their published Go modules.

Each folder below modules/ is a Go module whose go.mod and go.sum pin all that goes into its executables. What has
been built is kept, by a digest of these files, of Go's version and of its command line. The first build fetches
900 MB and takes about 25 minutes of processor time and 6 GB for Go's own caches; a later one finds most in them.

    python -m tests.kubernetes.programs [NAME ...]

builds all (or those named) with a line of progress, and prints the folder that they are in.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Final

from tests.kubernetes import golang
from tests.kubernetes.golang import Program
from tests.kubernetes.store import Store

KUBERNETES: Final = "1.34.4"
MODULES: Final = Path(__file__).with_name("modules")

_KUBERNETES_NUMBERS: Final = {
    f"k8s.io/component-base/version.{name}": value
    for name, value in {
        "gitVersion": f"v{KUBERNETES}",
        "gitMajor": KUBERNETES.split(".")[0],
        "gitMinor": KUBERNETES.split(".")[1],
        "gitTreeState": "clean",
        "gitCommit": "unknown",
        "buildDate": "2026-01-01T00:00:00Z",
    }.items()
}


PROGRAMS: Final = (
    Program(
        "hyper",
        "hyper",
        variables=_KUBERNETES_NUMBERS,
        called=(
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        ),
    ),
    # The number is that of its image in test/utils/image/manifest.go.
    Program("agnhost", "agnhost", "k8s.io/kubernetes/test/images/agnhost", variables={"main.Version": "2.56"}),
    Program("regression-issue-74839", "agnhost", "k8s.io/kubernetes/test/images/regression-issue-74839"),
    Program("coredns", "coredns"),
    Program("e2e.test", "e2e", test=True, variables=_KUBERNETES_NUMBERS),
    Program("ginkgo", "e2e", "github.com/onsi/ginkgo/v2/ginkgo"),
    Program("netpol", "netpol"),
)
ALL: Final = frozenset(name for program in PROGRAMS for name in program.names)


async def built(
    wanted: Collection[str] = ALL, say: Callable[[str], None] = lambda line: None, every: float = 30.0
) -> Path:
    """The folder with the programs `wanted`, each by its name; builds those that are missing.

    Start a program by its name in this folder: several names are links to one file. While a program is built, `say`
    gets a line every `every` seconds. Raises `golang.Unbuilt` if this machine can't make them: no Go or one that is
    too old (both `GoMissing`), or modules that can't be fetched; its sentence says what to do. Raises
    `golang.DoesNotCompile`.
    """
    if unknown := set(wanted) - ALL:
        raise ValueError(f"no such program: {', '.join(sorted(unknown))}")
    go = await golang.find()
    store = Store.of("programs")
    keys = {program.name: f"{program.name}-{digest(program, go)}" for program in PROGRAMS}
    needed = [program for program in PROGRAMS if set(program.names) & set(wanted)]
    for program in needed:
        waits = partial(say, f"waiting for another process, which builds {program.name}")
        key = keys[program.name]
        if not store.has(key):
            async with store.locked(key, waits):
                if not store.has(key):
                    with store.new(key) as folder:
                        await golang.compile_program(go, program, MODULES, folder, say, every)
        store.used([key])
    store.prune(keys.values())
    links = {name: Path(keys[program.name], program.name) for program in needed for name in program.names}
    return store.linked(f"bin-{_combined(keys.values())}", links)


def digest(program: Program, go: golang.Go) -> str:
    """It changes with all that goes into the executable."""
    made = hashlib.sha256(f"{go.version}\0{program.package}\0{' '.join(program.command)}\0".encode())
    for file in sorted((MODULES / program.module).iterdir()):
        content = file.read_bytes()
        made.update(f"{file.name}\0{len(content)}\0".encode() + content)
    return made.hexdigest()[:12]


def _combined(keys: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(sorted(keys)).encode()).hexdigest()[:12]


async def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kubernetes.programs", description="Build the programs of a Kubernetes cluster."
    )
    parser.add_argument("name", nargs="*", help="what to build, such as kubelet (default: everything)")
    names = parser.parse_args().name or ALL
    terminal = sys.stderr.isatty()

    def say(line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}" if terminal else f"{line}\n")
        sys.stderr.flush()

    try:
        folder = await built(names, say, every=1.0 if terminal else 30.0)
    except (golang.Unbuilt, golang.DoesNotCompile, ValueError) as error:
        say(f"{error}\n")
        return 1
    if terminal:
        say("")
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
