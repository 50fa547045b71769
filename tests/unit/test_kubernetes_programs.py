"""How Kubernetes' programs are made and kept, with a go command that the tests write themselves."""

from __future__ import annotations

import asyncio
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kubernetes import golang, programs
from tests.kubernetes.store import Store

GO = golang.Go("/go", "go version go1.26.8 linux/amd64")
ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted({program.module for program in programs.PROGRAMS})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def fake_go(folder: Path, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "go").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "go").chmod(0o755)


@pytest.fixture
def only_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the only go command that is found."""
    folder = tmp_path / "go"
    monkeypatch.setattr(golang, "executables", lambda: [str(each) for each in folder.glob("go")])
    monkeypatch.setattr(programs.Store, "of", lambda kind: Store(tmp_path / "store"))
    (tmp_path / "store").mkdir()
    return folder


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("go version go1.24 linux/amd64", True),
        ("go version go1.26.8 linux/arm64", True),
        ("go version go2.0 linux/arm64", True),
        ("go version devel go1.27-8e4b9f1 Mon Jan 5 linux/amd64", True),
        ("go version go1.25rc1 linux/amd64", True),
        ("go version go1.23.12 linux/amd64", False),
        ("go version go1.3 linux/amd64", False),
        ("gccgo (Debian 12.2.0) 12.2.0", False),
        ("", False),
    ],
)
def test_a_go_version_is_judged_by_its_numbers(version: str, enough: bool) -> None:
    assert golang.new_enough(version) is enough


async def test_a_missing_go_is_named_with_what_to_install(only_go: Path) -> None:
    with pytest.raises(golang.GoMissing, match=r"there is none; install Go 1\.24 or newer: https://go\.dev/dl"):
        await programs.built()


async def test_an_old_go_is_named_with_its_version(only_go: Path) -> None:
    fake_go(only_go, "echo go version go1.19.8 linux/amd64")
    with pytest.raises(golang.GoMissing, match=r"/go is go1\.19\.8 linux/amd64; install Go 1\.24 or newer"):
        await programs.built()


async def test_a_go_command_that_fails_counts_as_none(only_go: Path) -> None:
    fake_go(only_go, "exit 3")
    with pytest.raises(golang.GoMissing, match="/go is no Go; install"):
        await programs.built()


async def test_modules_that_cannot_be_fetched_are_no_compile_error(only_go: Path) -> None:
    fake_go(
        only_go,
        'case $1 in version) echo go version go1.25.0 linux/amd64;; *) echo "dial tcp: refused" >&2; false; esac',
    )
    with pytest.raises(golang.ModulesMissing, match="Go modules of netpol can't be fetched: dial tcp: refused"):
        await programs.built(["netpol"])


async def test_code_that_does_not_compile_is_no_reason_to_skip(only_go: Path) -> None:
    fake_go(
        only_go, "case $1 in version) echo go version go1.25.0 linux/amd64;; build) echo 'x.go:1' >&2; exit 1; esac"
    )
    with pytest.raises(golang.DoesNotCompile, match=re.escape("netpol does not compile: x.go:1")) as raised:
        await programs.built(["netpol"])
    assert not isinstance(raised.value, golang.Unbuilt)
    assert {each.name for each in (only_go.parent / "store").iterdir()} == {".lock-netpol"}


BUILDS = """case $1 in
version) echo go version go1.25.0 linux/amd64;;
list) echo a; echo b;;
*) echo a >&2; echo x >> "$(dirname "$0")/builds"; while [ "$1" != -o ]; do shift; done; echo made > "$2";;
esac"""


async def test_programs_are_built_once_and_found_by_their_names(only_go: Path) -> None:
    fake_go(only_go, BUILDS)
    said: list[str] = []
    folder = await programs.built(["kubelet", "etcd"], said.append)
    assert {each.name for each in folder.iterdir()} == {*programs.PROGRAMS[0].names}
    assert (folder / "kubelet").read_text() == "made\n"
    assert said[0] == "fetching the modules of hyper (0:00)"
    assert any(line.startswith("building hyper, 2 packages, ") for line in said)
    assert await programs.built(["netpol"]) == folder
    assert await programs.built(["kubectl", "netpol"], said.append) == folder
    assert (only_go / "builds").read_text() == "x\n" * 2


async def test_two_builds_at_once_share_the_work_of_one(only_go: Path) -> None:
    fake_go(only_go, BUILDS)
    folders = await asyncio.gather(*(programs.built(["netpol"]) for _ in range(2)))
    assert folders[0] == folders[1]
    assert (only_go / "builds").read_text() == "x\n"


async def test_a_cancelled_build_ends_go_and_leaves_nothing(only_go: Path) -> None:
    pid = only_go / "pid"
    only_go.mkdir()
    os.mkfifo(pid)
    fake_go(
        only_go, f"[ $1 = version ] && exec echo go version go1.25.0 linux/amd64\necho $$ > {pid}; exec sleep 1000"
    )
    task = asyncio.create_task(programs.built(["netpol"]))
    running = int(await asyncio.to_thread(pid.read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(running, 0)
    assert {each.name for each in (only_go.parent / "store").iterdir()} == {".lock-netpol"}


def test_a_killed_build_ends_go(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    os.mkfifo(pid)
    fake_go(tmp_path / "go", f"[ $1 = version ] && exec echo go version go1.25.0 x\necho $$ > {pid}; exec sleep 1000")
    environment = {"PATH": f"{tmp_path / 'go'}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "tests.kubernetes.programs", "netpol"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=ROOT) as building:
        go = os.pidfd_open(int(pid.read_text()))
        building.kill()
    ended = select.poll()
    ended.register(go, select.POLLIN)
    assert ended.poll(60_000)
    os.close(go)


@pytest.mark.parametrize("name", ["go.sum", "main.go"])
def test_the_key_changes_with_each_file_of_the_module(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(programs.MODULES, tmp_path / "programs")
    monkeypatch.setattr(programs, "MODULES", tmp_path / "programs")
    before = {program.name: programs.digest(program, GO) for program in programs.PROGRAMS}
    with (tmp_path / "programs" / "netpol" / name).open("a") as file:
        file.write("\n")
    after = {program.name: programs.digest(program, GO) for program in programs.PROGRAMS}
    assert {program for program in before if before[program] != after[program]} == {"netpol"}


def test_the_key_changes_with_go_and_its_command_line() -> None:
    program = programs.PROGRAMS[0]
    other = golang.Program("hyper", "hyper", variables={"main.Version": "1"})
    keys = {
        programs.digest(program, GO),
        programs.digest(program, golang.Go("/go", "go1.27")),
        programs.digest(other, GO),
    }
    assert len(keys) == 3
    assert programs.digest(program, GO) == programs.digest(program, golang.Go("/elsewhere/go", GO.version))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_pins_the_versions_of_kubernetes(module: str) -> None:
    text = (programs.MODULES / module / "go.mod").read_text()
    assert text.startswith(f"module ipamd.test/{module}\n\ngo 1.24.0\n")
    assert "toolchain" not in text
    library = programs.KUBERNETES.replace("1.", "0.", 1)
    assert set(re.findall(r"k8s\.io/(?:client-go|api) (v\S+)", text)) == {f"v{library}"}
    assert set(re.findall(r"k8s\.io/kubernetes (v\S+)", text)) <= {f"v{programs.KUBERNETES}"}


def test_an_interrupted_build_is_swept_away_by_the_next(store: Store) -> None:
    (store.directory / ".new-a-killed").mkdir()
    (store.directory / ".new-b-in-work").mkdir()
    with store.new("a-1") as folder:
        (folder / "a").touch()
        assert not store.has("a-1")
    assert store.has("a-1")
    assert {each.name for each in store.directory.iterdir()} == {"a-1", ".new-b-in-work"}


def test_a_failed_build_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.new("a-1"):
        raise ZeroDivisionError
    assert not [*store.directory.iterdir()]


def test_folders_unused_for_days_are_removed(store: Store) -> None:
    for name in ("old", "wanted", "recent"):
        (store.directory / name).mkdir()
    for name in ("old", "wanted"):
        os.utime(store.directory / name, (0, time.time() - 3 * 86400))
    store.prune(["wanted"])
    assert {each.name for each in store.directory.iterdir()} == {"wanted", "recent"}


def test_of_many_versions_those_used_last_stay(store: Store) -> None:
    for age, name in enumerate(("a-5", "a-4", "b-1", "a-3", "a-2", "a-1")):
        (store.directory / name).mkdir()
        os.utime(store.directory / name, (0, time.time() - age))
    store.prune(["a-1"], versions=2)
    assert {each.name for each in store.directory.iterdir()} == {"a-1", "a-5", "a-4", "b-1"}


async def test_two_things_are_made_at_the_same_time(store: Store) -> None:
    async with store.locked("a-1"), asyncio.timeout(60), store.locked("b-1"):
        with store.new("a-1"), store.new("b-1"):
            pass
    assert store.has("a-1") and store.has("b-1")


async def test_one_thing_is_made_once_at_a_time(store: Store) -> None:
    waiting, order = asyncio.Event(), []

    async def other() -> None:
        async with store.locked("a-2", waiting.set):
            order.append("other")

    async with store.locked("a-1"):
        task = asyncio.create_task(other())
        await waiting.wait()
        order.append("first")
    await task
    assert order == ["first", "other"]
