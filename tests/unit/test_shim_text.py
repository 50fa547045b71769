"""Names, error objects, the spool and turns: the plugin's small parts."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cni_shim import errors, journal, names, spool


@pytest.mark.parametrize(
    ("data", "value"),
    [  # test vectors of draft-eastlake-fnv, appendix C
        (b"", 0xCBF29CE484222325),
        (b"a", 0xAF63DC4C8601EC8C),
        (b"foobar", 0x85944171F73967E8),
    ],
)
def test_fnv(data: bytes, value: int) -> None:
    assert names.fnv1a_64(data) == value


def test_host_ifname() -> None:
    container = "7d0f" * 16
    name = names.host_ifname(container, "eth0")
    assert name == "ipme8a2" + name[7:] and len(name) == 15 and int(name[3:], 16) >= 0
    assert names.host_ifname(container, "eth0") == name
    others = {names.host_ifname(f"{number:064x}", f"eth{number % 3}") for number in range(5000)}
    assert len(others | {name}) == 5001
    assert names.host_ifname("a", "bc") != names.host_ifname("ab", "c")


@pytest.mark.parametrize("text", ["plain", 'a "quoted" \\ path', "Zeilen\n\t\x00\x7f", "ü € 😀", "\udcff"])
def test_an_error_object_is_json(text: str) -> None:
    written = errors.CniError(11, text, text).render("0.4.0")
    assert written.isascii() and written.endswith(b"}\n")
    assert json.loads(written) == {"cniVersion": "0.4.0", "code": 11, "msg": text, "details": text}
    assert "details" not in json.loads(errors.CniError(11, text).render("0.4.0"))


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (b'{"cniVersion":"0.3.1"}', "0.3.1"),
        (b'{"name": "x", "cniVersion" : "1.1.0" , "a": 1}', "1.1.0"),
        (b'{\n  "cniVersion"\n:\n"0.4.0"}', "0.4.0"),
        (b"{}", "1.0.0"),
        (b"", "1.0.0"),
        (b'{"cniVersion"', "1.0.0"),
        (b'{"cniVersion": 1}', "1.0.0"),
        (b'{"cniVersion": "\\"}', "1.0.0"),
        (b'{"cniVersion": "1.0\n"}', "1.0.0"),
        (b'{"cniVersion": "' + b"1" * 100, "1.0.0"),
    ],
)
def test_version_of(config: bytes, version: str) -> None:
    assert errors.version_of(config) == version


def test_spool(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "released"
    spool.leave(str(directory), "ipm1", b"one" * 50_000)
    spool.leave(str(directory), "ipm1", b"two")
    files = sorted(directory.iterdir())
    assert [file.read_bytes() for file in files] == [b"one" * 50_000, b"two"]
    assert all(file.name.startswith("ipm1-") for file in files)
    assert files[0].stat().st_mode & 0o777 == 0o600 and directory.stat().st_mode & 0o777 == 0o700


def test_spool_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        spool.leave(str(tmp_path / "file" / "released"), "ipm1", b"x")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spool, "write", full)
    with pytest.raises(OSError, match="No space"):
        spool.leave(str(tmp_path / "released"), "ipm1", b"x")
    assert list((tmp_path / "released").iterdir()) == []


def run_main(before: str, stdin: int | None = None, **environment: str) -> subprocess.Popen[bytes]:
    """The plugin's entry, after some preparation, in a process of its own."""
    program = f"import cni_shim.main as main\n{before}\nmain.main()"
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_standard_input_that_does_not_end() -> None:
    with run_main("main.STDIN_SECONDS = 0.2", stdin=subprocess.PIPE, CNI_COMMAND="ADD") as process:
        assert process.wait() == 1  # although nobody has closed its standard input
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["code"] == 5


def test_standard_input_that_is_too_large() -> None:
    with run_main("", stdin=subprocess.PIPE, CNI_COMMAND="ADD") as process:
        out, err = process.communicate(b"{" + b" " * (4 << 20))
        assert (process.returncode, json.loads(out)["code"], err) == (1, 7, b"")


def test_standard_input_that_is_closed() -> None:
    with run_main("import os; os.close(0)", CNI_COMMAND="VERSION") as process:
        out, err = process.communicate()
        assert (process.returncode, json.loads(out)["code"], err) == (1, 5, b"")


def test_a_defect_is_told_as_an_error_object() -> None:
    with run_main("main.VERBS = {b'ADD': (None, 1.0)}", stdin=subprocess.DEVNULL, CNI_COMMAND="ADD") as process:
        out, err = process.communicate()
        assert (process.returncode, err) == (1, b"")
        assert json.loads(out)["code"] == 102 and "TypeError" in json.loads(out)["msg"]


def test_a_variable_that_is_not_text() -> None:
    with run_main("", stdin=subprocess.PIPE, CNI_COMMAND="DEL", CNI_CONTAINERID="\udcff", CNI_IFNAME="e") as process:
        out, _ = process.communicate(b"{}")
        assert process.returncode == 1 and "CNI_CONTAINERID" in json.loads(out)["msg"]


def test_a_message_about_a_huge_variable_is_short(tmp_path: Path) -> None:
    huge = "n" * 120_000
    printed, _ = run_main("", subprocess.DEVNULL, CNI_COMMAND=huge).communicate(timeout=30)
    assert len(printed) < 1300 and json.loads(printed)["code"] == 4
    journal.note(str(tmp_path / "log"), {b"CNI_NETNS": huge.encode()}, 1.0, "r-1", printed)
    assert len((tmp_path / "log").read_bytes()) < 3000
