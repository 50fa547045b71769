"""`ipamd install`: what it writes, that it replaces it whole, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from asyncinotify import Inotify, Mask

from ipamd import install
from ipamd.__main__ import main
from ipamd.install import commands, files, interpreter
from ipamd.install.files import write_conflist, write_drop_ins, write_systemd_files, write_unit
from ipamd.install.interpreter import find_interpreter
from ipamd.install.placing import InstallError
from ipamd.install.plugin import install_plugin

SOCKET = Path("/run/somewhere/ipamd.sock")
SHIPPED = Path(install.__file__).parents[2] / "systemd"
EXAMPLES = SHIPPED / "examples/ipamd.service.d"
# What systemd-analyze lists for any service of root's, and counts as nothing.
NO_MATTER = {"SupplementaryGroups", "RemoveIPC"}


def run_plugin(launcher: Path, verb: str = "VERSION", **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {"CNI_COMMAND": verb} | variables
    return subprocess.run(
        [launcher], input=b'{"cniVersion":"0.4.0"}', env=environment, capture_output=True, check=False
    )


def test_a_plugin_that_runs(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        plugin = install_plugin(tmp_path / "opt" / "bin", SOCKET)
    finally:
        os.umask(old)
    run = run_plugin(plugin.launcher)
    assert (run.returncode, run.stderr) == (0, b"")
    assert json.loads(run.stdout)["cniVersion"] == "0.4.0"
    assert plugin.launcher == tmp_path / "opt" / "bin" / "ipamd-cni"
    assert sorted(path.name for path in plugin.launcher.parent.iterdir()) == ["ipamd-cni", "ipamd-cni.d"]
    assert plugin.modules and sorted(path.name for path in plugin.modules.iterdir()) == [
        "installed.json",
        "ipamd_cni_modules.pyc",
    ]
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.joinpath("opt/bin").rglob("*")}
    assert all(mode == (0o644 if path.suffix in (".pyc", ".json") else 0o755) for path, mode in modes.items())
    shebang = plugin.launcher.read_text().splitlines()[0]
    assert shebang.startswith(f"#!{plugin.interpreter.path} -ISc") and len(shebang) < 256
    assert not plugin.interpreter.path.is_symlink()


def test_the_plugin_imports_nothing_but_c_modules(tmp_path: Path) -> None:
    """Every module of the standard library that is written in Python costs each pod a millisecond or more."""
    plugin = install_plugin(tmp_path, SOCKET)
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        f"sys.path[:2] = [{str(plugin.modules)!r}]\n"
        "import ipamd_cni_modules\n"
        "ours = ['cni_shim', 'ipamd_cni_modules']\n"
        "from cni_shim import grpc_call, huffman, main, namespace, netlink, plumbing, spool, turn\n"
        "namespace.find_setns()\n"
        "for name in set(sys.modules) - before:\n"
        "    file = getattr(sys.modules[name], '__file__', None) or ''\n"
        "    fast = name in sys.builtin_module_names or file.endswith('.so') or name.split('.')[0] in ours\n"
        "    if not fast: print(name, file)\n"
    )
    run = subprocess.run([plugin.interpreter.path, "-IS", "-c", program], capture_output=True, check=True)
    assert run.stdout == b""


def test_the_nodes_paths_travel_with_the_plugin(tmp_path: Path) -> None:
    for name in ("one.sock", "two.sock"):
        plugin = install_plugin(tmp_path / name, tmp_path / name)
        ready = json.loads(run_plugin(plugin.launcher, "STATUS").stdout)
        assert ready["code"] == 50 and str(tmp_path / name) in ready["msg"]


def test_a_log_on_request(tmp_path: Path) -> None:
    for log in (None, tmp_path / "log"):
        plugin = install_plugin(tmp_path / "bin", SOCKET, log=log)
        assert run_plugin(plugin.launcher).returncode == 0
        assert [path.name for path in tmp_path.iterdir() if path.name != "bin"] == (["log"] if log else [])
    assert json.loads((tmp_path / "log").read_text())["verb"] == "VERSION"
    with pytest.raises(InstallError, match="absolute"):
        install_plugin(tmp_path / "bin", SOCKET, log=Path("log"))


def test_the_plugin_can_be_reached_by_another_path(tmp_path: Path) -> None:
    """A DaemonSet installs into a mount of the host's folder; the host knows it by another path."""
    install_plugin(tmp_path / "bin", SOCKET)
    (tmp_path / "bin").rename(tmp_path / "moved")
    assert run_plugin(tmp_path / "moved" / "ipamd-cni").returncode == 0


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    first = install_plugin(tmp_path, SOCKET)
    before = {path: path.stat().st_mtime_ns for path in first.modules.rglob("*.pyc")}
    assert install_plugin(tmp_path, SOCKET) == first
    assert {path: path.stat().st_mtime_ns for path in first.modules.rglob("*.pyc")} == before


def test_the_version_before_stays_the_ones_before_it_go(tmp_path: Path) -> None:
    versions = [install_plugin(tmp_path, SOCKET.with_name(f"{number}.sock")) for number in range(3)]
    assert [version.modules.is_dir() for version in versions] == [False, True, True]
    assert run_plugin(versions[-1].launcher).returncode == 0


def test_a_plugin_that_runs_meanwhile_never_sees_half(tmp_path: Path) -> None:
    launcher = install_plugin(tmp_path, SOCKET).launcher
    done = threading.Event()
    failures: list[bytes] = []

    def keep_running() -> None:
        while not done.is_set():
            run = run_plugin(launcher)
            if run.returncode:
                failures.append(run.stdout + run.stderr)

    thread = threading.Thread(target=keep_running)
    thread.start()
    try:
        for number in range(5):
            install_plugin(tmp_path, SOCKET.with_name(f"{number}.sock"))
    finally:
        done.set()
        thread.join()
    assert failures == []


def test_the_interpreter_is_a_real_one(tmp_path: Path) -> None:
    chosen = find_interpreter()
    assert chosen.version >= (3, 11)
    assert chosen.path.read_bytes()[:4] == b"\x7fELF"
    if Path("/usr/bin/python3").exists():
        assert chosen.path == Path("/usr/bin/python3").resolve()
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert find_interpreter(link).path == Path(sys.executable).resolve()


def test_without_a_distributions_python_the_running_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "DISTRIBUTION_PYTHON", tmp_path / "absent")
    assert find_interpreter().version == sys.version_info[:2]


def script(tmp_path: Path) -> Path:
    path = tmp_path / "python3"
    path.write_text('#!/bin/sh\nexec python3 "$@"\n')
    path.chmod(0o755)
    return path


def spaced(tmp_path: Path) -> Path:
    path = tmp_path / "a b" / "python3"
    path.parent.mkdir()
    shutil.copy(Path(sys.executable).resolve(), path)
    return path


@pytest.mark.parametrize(
    ("interpreter", "reason"),
    [
        (script, "script around"),
        (spaced, "spaces"),
        (lambda _: Path("/bin/true"), "no Python interpreter"),
        (lambda tmp_path: tmp_path / "absent", "No such file"),
        (lambda tmp_path: tmp_path, "Is a directory"),
    ],
)
def test_interpreters_that_will_not_do(interpreter: object, reason: str, tmp_path: Path) -> None:
    assert callable(interpreter)
    with pytest.raises(InstallError, match=reason):
        install_plugin(tmp_path / "bin", SOCKET, interpreter=interpreter(tmp_path))
    assert not (tmp_path / "bin").exists()


def test_an_interpreter_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "OLDEST_PYTHON", (4, 0))
    with pytest.raises(InstallError, match="--interpreter"):
        find_interpreter()


@pytest.mark.parametrize(
    ("socket", "spool", "reason"),
    [
        (Path("relative.sock"), None, "absolute"),
        (SOCKET, Path("spool"), "absolute"),
        (Path("/run") / ("x" * 103), None, "107"),
    ],
)
def test_paths_that_will_not_do(tmp_path: Path, socket: Path, spool: Path | None, reason: str) -> None:
    with pytest.raises(InstallError, match=reason):
        install_plugin(tmp_path, socket, spool)


def test_folders_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HIDDEN", ())  # wherever this is installed
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "below"
    for write in (install_plugin, write_conflist, write_unit, write_drop_ins, write_systemd_files):
        with pytest.raises(InstallError, match=f"{tmp_path}/file.*are you root"):
            write(place)


def test_conflist(tmp_path: Path) -> None:
    path = write_conflist(tmp_path / "net.d")
    assert path == tmp_path / "net.d" / "10-ipamd.conflist"
    assert json.loads(path.read_text()) == {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "ipamd",
        "plugins": [{"type": "ipamd-cni"}],
    }
    assert path.stat().st_mode & 0o777 == 0o644
    write_conflist(tmp_path / "net.d")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".10-ipamd.conflist-a1", tmp_path / ".10-ipamd.conflist-b2"
    for folder in (old, new):
        folder.mkdir()
        (folder / "10-ipamd.conflist").write_text("half")
    os.utime(old, (1, 1))
    write_conflist(tmp_path)
    assert not old.exists() and new.exists(), "the other may be of somebody who writes now"


@pytest.mark.parametrize("before", [None, b"an older one"])
async def test_watching_runtime_reads_only_a_complete_conflist(tmp_path: Path, before: bytes | None) -> None:
    """Events as containerd's watcher takes them: it ignores what is created or moved in."""
    if before is not None:
        (tmp_path / "10-ipamd.conflist").write_bytes(before)
    with Inotify() as inotify:
        inotify.add_watch(tmp_path, Mask.CREATE | Mask.MODIFY | Mask.ATTRIB | Mask.MOVE | Mask.DELETE)
        path = write_conflist(tmp_path)
        (tmp_path / "end").mkdir()
        seen = []
        async for event in inotify:
            if event.name == Path("end"):
                break
            seen.append((event.mask & ~Mask.ISDIR, str(event.name)))
    there = seen.index((Mask.MOVED_TO, path.name))
    acted_upon = [
        place for place, (mask, _) in enumerate(seen) if mask & (Mask.MODIFY | Mask.MOVED_FROM | Mask.DELETE)
    ]
    assert acted_upon and min(acted_upon) > there, seen


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["install", "--bin-dir", str(tmp_path / "b"), "--socket", str(SOCKET)]
    assert main([*arguments, "--conf-dir", str(tmp_path / "c"), "--spool-dir", "/s"]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "b" / "ipamd-cni") in out and str(tmp_path / "c" / "10-ipamd.conflist") in out
    assert "cni.spool_dir set to the same" in out
    assert run_plugin(tmp_path / "b" / "ipamd-cni").returncode == 0
    assert main(arguments) == 0
    assert "spool_dir" not in capsys.readouterr().out
    assert main([*arguments, "--interpreter", "/bin/true"]) == 1
    assert "ipamd install: /" in capsys.readouterr().err


def test_the_packaging_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["install", "--bin-dir", str(tmp_path)]
    assert main([*arguments, "--plugin", "launcher"]) == 0
    assert "(launcher, Python 3" in capsys.readouterr().out
    assert main([*arguments, "--plugin", "auto", "--executable", "/bin/true"]) == 0
    out = capsys.readouterr().out
    assert "(launcher, Python 3" in out and "no choice: /bin/true" in out and "make shim" in out
    for contradiction in (
        ["--plugin", "static", "--interpreter", "/usr/bin/python3"],
        ["--executable", "/bin/true", "--interpreter", "/usr/bin/python3"],
        ["--plugin", "launcher", "--executable", "/bin/true"],
        ["--plugin", "static", "--executable", "/bin/true"],
    ):
        assert main([*arguments, *contradiction]) == 1
        assert "ipamd install: " in capsys.readouterr().err


# Settings of the unit that systemd ignores, with a word in the journal, before the version in which they came.
SINCE_254 = ("RestartSteps=", "RestartMaxDelaySec=")


def systemd_version() -> int:
    run = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True)
    return int(run.stdout.split()[1])


def verify(unit: Path) -> tuple[int, str]:
    if systemd_version() < 254:
        lines = unit.read_text().splitlines()
        unit.write_text("\n".join(line for line in lines if not line.startswith(SINCE_254)) + "\n")
    run = subprocess.run(
        ["systemd-analyze", "--man=no", "--recursive-errors=no", "verify", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def test_the_unit_is_sound(tmp_path: Path) -> None:
    unit = write_unit(tmp_path, Path("/bin/true"))
    assert verify(unit) == (0, "")
    lines = unit.read_text().splitlines()
    assert "ExecStart=/bin/true run" in lines
    # Settings that can't be used fail the reload before the daemon hears of it.
    reloads = [line for line in lines if line.startswith("ExecReload=")]
    assert reloads == ["ExecReload=/bin/true config check", "ExecReload=/bin/kill -HUP $MAINPID"]
    assert {"Type=notify", "RuntimeDirectory=ipamd", "RuntimeDirectoryPreserve=yes", "Restart=always"} <= set(lines)
    # The same check finds a fault when there is one.
    unit.write_text(unit.read_text().replace("WatchdogSec", "WatchdogSecs"))
    code, text = verify(unit)
    assert code != 0 and "WatchdogSecs" in text


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.conf")), ids=lambda path: path.stem)
def test_the_examples_of_drop_ins_are_sound(tmp_path: Path, example: Path) -> None:
    unit = write_unit(tmp_path, Path("/bin/true"))
    place = tmp_path / "ipamd.service.d" / example.name
    place.parent.mkdir()
    place.write_text(example.read_text())
    assert verify(unit) == (0, "")
    place.write_text(f"{example.read_text()}NoSuchSetting=\n")
    assert verify(unit)[0] != 0


def exposure(unit: Path) -> tuple[float, set[str]]:
    """As systemd-analyze(1) reckons it, from 0 to 10; and the settings that add to it."""
    analyze = ("systemd-analyze", "security", "--offline=true", "--no-pager")
    table = subprocess.run([*analyze, "--json=short", unit], capture_output=True, check=True, text=True).stdout
    verdict = subprocess.run([*analyze, unit], capture_output=True, check=False, text=True).stdout
    level = re.search(r"exposure level for .*?: ([0-9.]+)", verdict)
    assert level is not None
    return float(level[1]), {row["name"].split("=")[0] for row in json.loads(table) if row["set"] is False}


def test_what_is_left_exposed_is_explained_in_the_unit(tmp_path: Path) -> None:
    unit = write_unit(tmp_path, Path("/bin/true"))
    level, exposed = exposure(unit)
    assert level < 2
    explained = unit.read_text().partition("still counts, and why")[2]
    assert {name for name in exposed if name not in explained} <= NO_MATTER
    unit.write_text("\n".join(line for line in unit.read_text().splitlines() if "SystemCall" not in line))
    assert exposure(unit)[0] > level + 1


def test_the_unit_runs_the_command_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "my 100% bin" / "ipamd"
    own.parent.mkdir()
    own.write_text("")
    monkeypatch.setattr(sys, "argv", [str(own), "install"])
    monkeypatch.setattr(files, "HIDDEN", (tmp_path,))
    with pytest.raises(InstallError, match=rf"does not see {tmp_path}.*/opt/ipamd"):
        write_unit(tmp_path)
    monkeypatch.setattr(files, "HIDDEN", ())
    assert f'ExecStart="{str(own).replace("%", "%%")}" run' in write_unit(tmp_path).read_text().splitlines()


def test_drop_ins(tmp_path: Path) -> None:
    written = write_drop_ins(tmp_path)
    shipped = SHIPPED / "etc"
    others = write_systemd_files(tmp_path)
    assert {path.relative_to(tmp_path) for path in written + others} == {
        path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()
    }
    assert all(path.read_text() == (shipped / path.relative_to(tmp_path)).read_text() for path in written)
    assert {path.stat().st_mode & 0o777 for path in written} == {0o644}
    assert write_drop_ins(tmp_path) == write_systemd_files(tmp_path) == []
    written[1].write_text("changed")
    assert write_drop_ins(tmp_path) == [written[1]]


def test_what_goes_with_the_unit_does_what_it_is_for(tmp_path: Path) -> None:
    """Asked of systemd's own programs, for the file system of an image."""
    write_unit(tmp_path / "etc/systemd/system", Path("/bin/true"))
    write_systemd_files(tmp_path / "etc")
    root = f"--root={tmp_path}"
    subprocess.run(["systemd-sysusers", root, "ipamd.conf"], check=True)
    assert (tmp_path / "etc/group").read_text().startswith("ipamd:")
    group = int((tmp_path / "etc/group").read_text().split(":")[2])
    subprocess.run(["systemd-tmpfiles", root, "--create", "ipamd.conf"], check=True)
    wanted = {"run/ipamd": 0o755, "run/ipamd/released": 0o700, "run/ipamd/read": 0o2750, "etc/cni/net.d": 0o755}
    assert {name: (tmp_path / name).stat().st_mode & 0o7777 for name in wanted} == wanted
    assert (tmp_path / "run/ipamd/read").stat().st_gid == group
    assert (tmp_path / "run/ipamd/read.sock").readlink() == Path("read/ipamd.sock")
    subprocess.run(["systemctl", root, "preset", "ipamd.service"], check=True, capture_output=True)
    assert (tmp_path / "etc/systemd/system/multi-user.target.wants/ipamd.service").is_symlink()


def test_without_the_group_the_folders_are_made_all_the_same(tmp_path: Path) -> None:
    write_systemd_files(tmp_path / "etc")
    subprocess.run(["systemd-tmpfiles", f"--root={tmp_path}", "--create", "ipamd.conf"], capture_output=True)
    assert (tmp_path / "run/ipamd").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "run/ipamd/released").is_dir()


def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.is_symlink()}


def test_installed_into_an_image_twice_and_taken_out_again_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "opt/ipamd/bin/ipamd"
    own.parent.mkdir(parents=True)
    own.write_text("")
    own.with_name("ipamctl").write_text("")
    monkeypatch.setattr(sys, "argv", [str(own)])
    monkeypatch.setattr(files, "HIDDEN", ())
    before = files_below(tmp_path)
    arguments = [
        "install",
        "--root",
        str(tmp_path),
        "--plugin",
        "launcher",
        "--conf-dir",
        "/etc/cni/net.d",
        "--systemd",
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    installed = files_below(tmp_path)
    assert {f"etc/{name}" for name in (*files.DROP_INS, files.TMPFILES, files.SYSUSERS, files.PRESET)} < installed
    assert {
        "opt/cni/bin/ipamd-cni",
        "etc/systemd/system/ipamd.service",
        "etc/cni/net.d/10-ipamd.conflist",
        "usr/local/bin/ipamd",
        "usr/local/bin/ipamctl",
    } < installed
    assert (tmp_path / "usr/local/bin/ipamctl").readlink() == Path("/opt/ipamd/bin/ipamctl")
    assert all(str(tmp_path / "etc" / name) in out for name in files.DROP_INS)
    assert f"systemctl --root={tmp_path} enable ipamd.service" in out
    assert "ExecStart=/opt/ipamd/bin/ipamd run\n" in (tmp_path / "etc/systemd/system/ipamd.service").read_text()
    assert main(arguments) == 0
    assert "as they should be" in capsys.readouterr().out and files_below(tmp_path) == installed

    subprocess.run(["systemctl", f"--root={tmp_path}", "enable", "ipamd.service"], check=True, capture_output=True)
    others = tmp_path / "etc/cni/net.d/99-other.conflist"
    others.write_text("{}")
    undo = ["uninstall", "--root", str(tmp_path)]
    assert main(undo) == 0
    gone = {line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert {str(tmp_path / name) for name in installed - before if "ipamd-cni.d" not in name} < gone
    assert files_below(tmp_path) == before | {"etc/cni/net.d/99-other.conflist"}
    assert main(undo) == 0
    assert "nothing" in capsys.readouterr().out


def test_without_ipamd_the_node_says_no_longer_that_it_serves(tmp_path: Path) -> None:
    run = tmp_path / "run/ipamd"
    run.mkdir(parents=True)
    arguments = ["--root", str(tmp_path)]
    for socket in ("ipamd.sock", "other.sock"):
        record = run / f"{socket}.served"
        record.write_text("x")
        words = ["--plugin", "launcher", "--socket", f"/run/ipamd/{socket}"]
        assert main(["install", *arguments, *words]) == 0
        assert main(["uninstall", *arguments]) == 0
        assert not record.exists()


def test_what_can_not_be_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_the_way = tmp_path / "etc/cni/net.d/10-ipamd.conflist"
    in_the_way.mkdir(parents=True)
    assert main(["uninstall", "--root", str(tmp_path)]) == 1
    assert f"ipamd uninstall: {in_the_way}: Is a directory" in capsys.readouterr().err


def test_a_command_of_somebody_else_stays_where_it_is(tmp_path: Path) -> None:
    own, theirs = tmp_path / "opt/bin/ipamd", tmp_path / "usr/local/bin/ipamd"
    for path in (own, own.with_name("ipamctl"), theirs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    said = commands.link_commands(tmp_path, Path("/opt/bin/ipamd"))
    assert said == [
        "left     /usr/local/bin/ipamd: not a link of ipamd's; the command is /opt/bin/ipamd",
        "command  /usr/local/bin/ipamctl -> /opt/bin/ipamctl",
    ]
    assert theirs.read_text() == "mine"
    assert commands.unlink_commands(tmp_path) == [tmp_path / "usr/local/bin/ipamctl"]
    assert theirs.read_text() == "mine"


def test_a_link_to_an_older_environment_is_renewed(tmp_path: Path) -> None:
    for folder in ("opt/new", "usr/local/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("ipamd", "ipamctl"):
        (tmp_path / "opt/new" / name).write_text("")
        (tmp_path / "usr/local/bin" / name).symlink_to(f"/opt/gone/{name}")
    commands.link_commands(tmp_path, Path("/opt/new/ipamd"))
    assert (tmp_path / "usr/local/bin/ipamd").readlink() == Path("/opt/new/ipamd")


@pytest.mark.parametrize("option", ["--bin-dir", "--conf-dir", "--socket", "--spool-dir", "--plugin-log"])
def test_a_path_that_depends_on_the_folder_is_refused(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install", "--root", str(tmp_path), "--plugin", "launcher", option, "rel/path"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ipamd install: rel/path: ") and said.count("\n") == 1
    assert not (tmp_path / "rel").exists()
