"""ipamctl completion: what a real shell makes of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.ctl_daemon import ipamctl, serving


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "ipamctl.bash"
    file.write_text(ipamctl("completion", "bash").stdout)
    return file


def completed(script: Path, line: str, path: str | None = None) -> set[str]:
    """What bash offers at the end of `line`."""
    words = line.split(" ")
    ask = f"""
        source {script}
        COMP_WORDS=({" ".join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}
        COMP_LINE={line!r}; COMP_POINT={len(line)}
        _shtab_ipamctl ipamctl '{words[-1]}' '{words[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "--norc", "-c", ask], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    return set(done.stdout.split())


def test_commands_options_and_their_values(script: Path) -> None:
    assert {"status", "explain", "enis", "release"} <= completed(script, "ipamctl ")
    assert completed(script, "ipamctl sta") == {"status"}
    assert "--columns" in completed(script, "ipamctl pods --")
    assert completed(script, "ipamctl pods -o ") == {"table", "json", "yaml", "name"}
    assert completed(script, "ipamctl explain po") == {"pod", "pool"}


def test_names_of_pods_come_from_the_daemon(script: Path, tmp_path: Path) -> None:
    command = tmp_path / "ipamctl"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ipamd.ctl --socket {tmp_path}/s "$@"\n')
    command.chmod(0o755)
    with serving(tmp_path / "s"):
        assert completed(script, "ipamctl release ", str(tmp_path)) >= {"shop/web-0", "shop/web-1"}
        assert completed(script, "ipamctl explain pod shop/web-1", str(tmp_path)) == {"shop/web-1"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_theirs(shell: str, tmp_path: Path) -> None:
    done = ipamctl("completion", shell)
    assert done.returncode == 0 and "ipamctl" in done.stdout and "support" not in done.stderr
    if (found := shutil.which(shell)) is not None:
        file = tmp_path / "script"
        file.write_text(done.stdout)
        subprocess.run([found, "-n", str(file)], check=True, timeout=60)
