"""A command line without a command, or with a mistyped one: help instead of a complaint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipamd.__main__ import main as ipamd
from ipamd.ctl.__main__ import main as ipamctl

PROGRAMS = pytest.mark.parametrize(("program", "name"), [(ipamd, "ipamd"), (ipamctl, "ipamctl")])
Main = Callable[[list[str]], int]


@PROGRAMS
def test_without_a_command_the_help_is_shown(program: Main, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program([]) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith(f"usage: {name}") and shown.err == ""


@pytest.mark.parametrize(
    ("program", "words", "meant"),
    [
        (ipamctl, ["statsu"], "Did you mean status?"),
        (ipamctl, ["--socket", "/x", "-o", "json", "adresses"], "Did you mean addresses?"),
        (ipamctl, ["--socket=/x", "podz"], "Did you mean pods?"),
        (ipamd, ["instal"], "Did you mean install?"),
        (ipamd, ["simulat"], "Did you mean simulate?"),
    ],
)
def test_a_mistyped_command_is_recognized(
    program: Main, words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and meant in shown.err


@PROGRAMS
@pytest.mark.parametrize("word", ["zzzzzz", "", "\x1b[2J"])
def test_what_is_no_command_at_all_is_named(
    program: Main, name: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program([word]) == 2
    assert capsys.readouterr().err == f"{name}: no command {word!r}. ({name} --help lists them)\n"


@PROGRAMS
@pytest.mark.parametrize("words", [["--zzz"], ["-o"], ["--"]])
def test_options_are_the_parsers(program: Main, name: str, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program(words)
    assert ended.value.code == 2
