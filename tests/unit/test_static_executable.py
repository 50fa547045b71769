"""The static executable: the same plugin as the launcher's, whatever comes in, and nothing of the host around it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from cni_shim.static import block, build
from ipamd.install.placing import InstallError
from ipamd.install.plugin import InstalledPlugin, install_plugin
from tests.executable import static_executable

SETTINGS = block.Settings("/run/sömewhere/\udcff.sock", "/run/spool", "", 4.5, True)


@pytest.fixture(scope="module")
def executable() -> Path:
    return static_executable()


@pytest.fixture(scope="module")
def pair(executable: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The plugin in both packagings, with the same settings; a daemon is not there."""
    folder = tmp_path_factory.mktemp("pair")
    spool = folder / "späte \udcff"
    plugins = [
        install_plugin(folder / "launcher", folder / "s.sock", spool, add_seconds=4.2),
        install_plugin(
            folder / "static", folder / "s.sock", spool, add_seconds=4.2, packaging="static", executable=executable
        ),
    ]
    return [plugin.launcher for plugin in plugins]


def run(
    plugin: Path, environment: dict[bytes, bytes] | None = None, config: bytes = b'{"cniVersion":"0.4.0","name":"n"}'
) -> tuple[int, bytes, bytes]:
    variables = {b"CNI_COMMAND": b"VERSION"} if environment is None else environment
    made = subprocess.run([plugin], input=config, env=variables, capture_output=True, timeout=30, check=False)
    return made.returncode, made.stdout, made.stderr


CONTAINER = {
    b"CNI_CONTAINERID": b"c1",
    b"CNI_IFNAME": b"eth0",
    b"CNI_NETNS": "/run/netns/gibt-es-nicht-ß".encode(),
    b"CNI_PATH": b"/opt/cni/bin",
}


@pytest.mark.parametrize(
    ("environment", "config"),
    [
        ({b"CNI_COMMAND": b"VERSION"}, b'{"cniVersion":"1.1.0"}'),
        ({b"CNI_COMMAND": b"VERSION"}, b""),
        ({}, b"{}"),
        ({b"CNI_COMMAND": b"F\xff\xc3\x28"}, b"{}"),
        ({b"CNI_COMMAND": b"STATUS"}, b'{"cniVersion":"1.1.0","name":"n"}'),
        ({b"CNI_COMMAND": b"STATUS"}, b'{"cniVersion":"\xff\xfe"}'),
        ({b"CNI_COMMAND": b"STATUS"}, b"no JSON"),
        ({b"CNI_COMMAND": b"GC"}, b'{"cniVersion":"1.1.0","name":"n"}'),
        ({b"CNI_COMMAND": b"STATUS"}, b"{" + b" " * (3 << 20)),
        (CONTAINER | {b"CNI_COMMAND": b"ADD"}, b'{"cniVersion":"1.0.0"}'),
        (CONTAINER | {b"CNI_COMMAND": b"ADD", b"CNI_NETNS": b"/run/\xff\xed\xa0\x80"}, b'{"cniVersion":"1.0.0"}'),
        (CONTAINER | {b"CNI_COMMAND": b"ADD", b"CNI_NETNS": b"/proc/self/ns/net"}, b'{"cniVersion":"1.0.0"}'),
        (CONTAINER | {b"CNI_COMMAND": b"ADD", b"CNI_NETNS": b"/"}, b'{"cniVersion":"1.0.0"}'),
        (CONTAINER | {b"CNI_COMMAND": b"CHECK"}, b'{"cniVersion":"1.0.0"}'),
        (CONTAINER | {b"CNI_COMMAND": b"ADD", b"CNI_IFNAME": b""}, b'{"cniVersion":"1.0.0"}'),
    ],
)
def test_both_packagings_answer_the_same(pair: list[Path], environment: dict[bytes, bytes], config: bytes) -> None:
    launcher, static = (run(plugin, environment, config) for plugin in pair)
    assert static == launcher
    status, out, err = static
    assert err == b"" and (json.loads(out)["code"] if status else json.loads(out)["supportedVersions"])


def test_both_leave_the_same_in_the_spool(pair: list[Path]) -> None:
    """The file names of the spool are made of the configuration; the folder's name is not valid UTF-8."""
    (spool,) = [Path(os.fsdecode(name)) for name in [os.fsencode(pair[0].parents[1] / "späte \udcff")]]
    left = []
    for plugin in pair:
        # In a network namespace of its own: a DEL touches the kernel's links.
        environment = CONTAINER | {b"CNI_COMMAND": b"DEL", b"CNI_CONTAINERID": b"\xc3\xa4" * 5}
        made = subprocess.run(
            ["unshare", "-n", plugin],
            input=b'{"cniVersion":"1.0.0","name":"n"}',
            env={os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
            | {"PATH": os.environ["PATH"]},
            capture_output=True,
            check=False,
        )
        assert (made.returncode, made.stdout, made.stderr) == (0, b"", b"")
        left.append([file.read_bytes() for file in spool.iterdir()])
        for file in spool.iterdir():
            file.unlink()
    assert left[0] == left[1] and len(left[0]) == 1


def test_no_python_variable_has_an_effect(executable: Path) -> None:
    variables = {
        b"PYTHONHOME": b"/nowhere",
        b"PYTHONPATH": b"/nowhere",
        b"PYTHONMALLOC": b"debug",
        b"PYTHONVERBOSE": b"1",
        b"PYTHONHASHSEED": b"garbage",
        b"PYTHONTRACEMALLOC": b"1",
        b"PYTHONUTF8": b"0",
        b"PYTHONINSPECT": b"1",
        b"PYTHONDEVMODE": b"1",
        b"LC_ALL": b"de_DE.ISO-8859-1",
    }
    assert run(executable, {b"CNI_COMMAND": b"VERSION"} | variables) == run(executable)
    odd = {b"CNI_COMMAND": b"VERSION", b"": b"x", b"EMPTY": b""} | {b"N%d" % n: b"\xff" * 1000 for n in range(500)}
    assert run(executable, odd) == run(executable)


def test_it_needs_no_file(executable: Path, tmp_path: Path) -> None:
    inside = tmp_path / "ipamd-cni"
    inside.write_bytes(executable.read_bytes())
    inside.chmod(0o755)
    made = subprocess.run(
        ["chroot", tmp_path, "/ipamd-cni"],
        input=b'{"cniVersion":"1.1.0"}',
        env={"CNI_COMMAND": "STATUS", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    assert made.returncode == 1 and made.stderr == b""
    error = json.loads(made.stdout)
    assert error["code"] == 50 and "/run/ipamd/ipamd.sock" in error["msg"]


def test_a_reader_that_went_away_does_no_harm(executable: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        made = subprocess.run(
            [executable], input=b"{}", stdout=write_end, stderr=subprocess.PIPE, env={"CNI_COMMAND": "X"}, check=False
        )
    finally:
        os.close(write_end)
    assert (made.returncode, made.stderr) == (1, b"")


def test_nothing_of_the_builders_environment_is_in_it(
    executable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_BUILDER", "x")
    build.build(tmp_path / "made")
    image = (tmp_path / "made").read_bytes()
    assert b"SECRET_OF_THE_BUILDER" not in image and os.fsencode(tmp_path) not in image


def test_settings(executable: Path, tmp_path: Path) -> None:
    image = executable.read_bytes()
    before, digest = block.read(image)
    assert before == block.Settings("/run/ipamd/ipamd.sock", "/run/ipamd/released", "", 65.0, False)
    assert digest == block.digest(block.sources())
    other = block.fill(image, SETTINGS)
    assert len(other) == len(image) and block.read(other) == (SETTINGS, digest)
    assert block.fill(other, before) == image
    longest = block.Settings("/" * 107, "/" * 4095, "/" * 4095, 1.0)
    assert block.read(block.fill(image, longest)) == (longest, digest)
    for number in range(3):
        with pytest.raises(block.BlockError, match="does not fit"):
            block.fill(image, longest._replace(**{longest._fields[number]: "/" * 4096}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda image: b"", "no static executable"),
        (lambda image: image[: image.index(block.MAGIC) + 20], "no static executable"),
        (lambda image: image + block.MAGIC, "no static executable"),
        (lambda image: image.replace(block.MAGIC + b"\1", block.MAGIC + b"\2"), "layout 2"),
    ],
)
def test_images_that_will_not_do(executable: Path, damage: object, reason: str) -> None:
    assert callable(damage)
    image = damage(executable.read_bytes())
    for use in (block.read, lambda damaged: block.fill(damaged, SETTINGS)):
        with pytest.raises(block.BlockError, match=reason):
            use(image)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("import json", "json is not in the executable"),
        ("def f():\n    from os import path", "line 2: os is not"),
        ("import cni_shim.errors", "from cni_shim import errors"),
        ("from cni_shim import absent", "cni_shim.absent"),
        ("from cni_shim.installed import LOG", "read installed.NAME"),
    ],
)
def test_a_module_that_could_not_import(line: str, reason: str) -> None:
    with pytest.raises(build.BuildError, match=reason):
        build.check_imports("module", line, {"errors"})


def test_imports_that_it_knows() -> None:
    lines = "import posix\nfrom cni_shim import errors, installed\nfrom cni_shim.errors import CniError\n"
    build.check_imports("module", lines + "if TYPE_CHECKING:\n    import typing\n", {"errors"})


def test_a_switch_of_the_packaging_leaves_nothing(executable: Path, tmp_path: Path) -> None:
    def files() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    socket = tmp_path / "s.sock"
    install_plugin(tmp_path, socket)
    static = install_plugin(tmp_path, socket, packaging="static", executable=executable)
    assert run(static.launcher)[0] == 0 and static.launcher.read_bytes()[:4] == b"\x7fELF"
    assert files() == ["ipamd-cni", "ipamd-cni.d"]  # a launcher that runs may still import from there
    written = static.launcher.stat().st_mtime_ns
    assert install_plugin(tmp_path, socket, packaging="static", executable=executable) == static
    assert files() == ["ipamd-cni"] and static.launcher.stat().st_mtime_ns == written
    assert static.launcher.stat().st_mode & 0o7777 == 0o755
    launcher = install_plugin(tmp_path, socket)
    assert run(launcher.launcher)[0] == 0 and files() == ["ipamd-cni", "ipamd-cni.d"]


def test_runs_meanwhile_never_see_half(executable: Path, tmp_path: Path) -> None:
    plugin = install_plugin(tmp_path, tmp_path / "s.sock").launcher
    done = threading.Event()
    failures: list[tuple[int, bytes, bytes]] = []

    def keep_running() -> None:
        while not done.is_set():
            outcome = run(plugin)
            if outcome[0]:
                failures.append(outcome)

    thread = threading.Thread(target=keep_running)
    thread.start()
    try:
        for number in range(6):
            socket = tmp_path / f"{number}.sock"
            if number % 2:
                install_plugin(tmp_path, socket)
            else:
                install_plugin(tmp_path, socket, packaging="static", executable=executable)
    finally:
        done.set()
        thread.join()
    assert failures == []


def test_the_quickest_is_chosen(executable: Path, tmp_path: Path) -> None:
    plugin = install_plugin(tmp_path, tmp_path / "s.sock", packaging="auto", executable=executable)
    names = [name for name, _ in plugin.measured]
    times = [time for _, time in plugin.measured]
    assert f"static {executable}" in names and any(name.startswith("launcher with /") for name in names)
    assert times == sorted(times) and (plugin.executable is not None) == names[0].startswith("static")
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "ipamd-cni" and run(plugin.launcher)[0] == 0


def told_apart(folder: Path) -> set[tuple[str, int, int]]:
    return {(str(path), path.stat().st_ino, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def test_what_was_chosen_before_is_kept_and_not_compared_again(executable: Path, tmp_path: Path) -> None:
    def install() -> InstalledPlugin:
        return install_plugin(tmp_path / "bin", tmp_path / "s.sock", packaging="auto", executable=executable)

    install_plugin(tmp_path / "bin", tmp_path / "s.sock", packaging="static", executable=executable)
    before = told_apart(tmp_path / "bin")
    again = install()
    assert (again.kept, again.measured, again.executable) == (True, (), executable)
    assert told_apart(tmp_path / "bin") == before  # not so much as a file beside it for a moment
    # A launcher may have been chosen when there was no executable.
    shutil.rmtree(tmp_path / "bin")
    install_plugin(tmp_path / "bin", tmp_path / "s.sock")
    once_more = install()
    assert not once_more.kept and len(once_more.measured) > 1


def test_a_plugin_of_another_version_is_compared_again(executable: Path, tmp_path: Path) -> None:
    of_others = written(tmp_path, executable.read_bytes().replace(block.digest(block.sources()).encode(), b"0" * 32))
    (tmp_path / "bin").mkdir()
    of_others.rename(tmp_path / "bin" / "ipamd-cni")
    plugin = install_plugin(tmp_path / "bin", tmp_path / "s.sock", packaging="auto", executable=executable)
    assert not plugin.kept and len(plugin.measured) > 1 and run(plugin.launcher)[0] == 0


def absent(tmp_path: Path, image: bytes) -> Path:
    return tmp_path / "absent"


def of_other_sources(tmp_path: Path, image: bytes) -> Path:
    return written(tmp_path, image.replace(block.digest(block.sources()).encode(), b"0" * 32))


def for_another_machine(tmp_path: Path, image: bytes) -> Path:
    return written(tmp_path, image[:18] + b"\xff\xff" + image[20:])


def something_else(tmp_path: Path, image: bytes) -> Path:
    return written(tmp_path, b"#!/bin/sh\n")


def written(tmp_path: Path, image: bytes) -> Path:
    path = tmp_path / "given"
    path.write_bytes(image)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (absent, "No such file"),
        (of_other_sources, "other sources"),
        (for_another_machine, "Exec format error"),
        (something_else, "no static executable"),
    ],
)
def test_executables_that_will_not_do(executable: Path, tmp_path: Path, make: object, reason: str) -> None:
    assert callable(make)
    given = make(tmp_path, executable.read_bytes())
    with pytest.raises(InstallError, match=reason):
        install_plugin(tmp_path / "bin", tmp_path / "s.sock", packaging="static", executable=given)
    assert not (tmp_path / "bin").exists()
    plugin = install_plugin(tmp_path / "bin", tmp_path / "s.sock", packaging="auto", executable=given)
    assert reason in plugin.passed_over[0]
    assert plugin.interpreter is not None and run(plugin.launcher)[0] == 0
