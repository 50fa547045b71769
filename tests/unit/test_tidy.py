"""Limits on size, complexity, names and wording, as a ratchet.

The FROZEN tables list what exceeded a limit when it was introduced, with the figure of that day as its own limit. A
commit that improves a function lowers its figure or deletes its line. Never raise a figure or add a line: split the
function or the file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THIS = Path(__file__).resolve()

MOST_LINES_IN_A_FILE = 400
MOST_LINES_IN_A_FUNCTION = 60
MOST_COMPLEXITY = 15
MOST_CHARACTERS_IN_A_TEST_NAME = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Folder, file stem, the function's qualified name.
FROZEN_COMPLEXITY: dict[str, int] = {
    "bench/bench_pods.table": 16,
    "bench/draw_dashboard.drawn": 20,
    "cni_shim/grpc_call._Call._handle": 20,
    "config/command._check": 18,
    "config/doubts.doubts": 29,
    "config/manifest._environments": 19,
    "config/manifest.variables": 17,
    "ctl/changes.chosen": 17,
    "ctl/status.data": 20,
    "ctl/status.screen": 19,
    "demo/run.Demo._use": 16,
    "e2e/test_e2e_containerd.test_twenty_pods_at_once_on_each_of_two_nodes": 16,
    "e2e/test_e2e_crash.test_kill_in_the_middle_of_a_burst": 18,
    "ec2/api.Ec2Api._answer": 18,
    "ec2/faults.Fault.__post_init__": 16,
    "ec2/faults.Fault.parse": 20,
    "host/difference.difference": 26,
    "host/failures.failure_of": 17,
    "host/mark_users._follow": 17,
    "host/network.HostNetwork._changed": 19,
    "host/network.HostNetwork._link_changed": 25,
    "host/network.HostNetwork.apply": 16,
    "host/reconciler.Reconciler._tell": 16,
    "host/rtnetlink.read_rule": 16,
    "host/vpc_cni._rules": 38,
    "host/vpc_cni._table": 22,
    "netns/test_bench_datapath.test_every_line_of_the_table_is_measured": 18,
    "netns/test_bench_plugin.test_every_case_is_measured_alone_and_in_a_burst": 17,
    "property/test_ec2_replies.usable": 16,
    "property/test_pool_machine.PoolMachine.carry_out": 23,
    "property/test_pool_machine.PoolMachine.feed": 31,
    "sim/fabric.Fabric._accept": 19,
}
FROZEN_FUNCTION_LINES: dict[str, int] = {
    "cloud/iam.statements": 62,
    "e2e/test_e2e_systemd.test_the_sandbox_permits_the_daemons_work_and_nothing_else": 61,
    "netns/test_daemon.test_check_collect_ready_and_what_can_not_be_understood": 69,
    "sim/simulate.add_parser": 93,
}
FROZEN_FILE_LINES: dict[str, int] = {
    "ipamd/cloud/ec2.py": 416,
    "ipamd/host/network.py": 413,
    "ipamd/kubectl/plugin.py": 442,
    "ipamd/ledger/ledger.py": 415,
    "ipamd/sim/fabric.py": 405,
}

# A pattern, and what to write instead. Plain engineering English: subject, verb, object.
BANNED = {
    r"\b(is|are|was|were|be|being|been) (not )?told\b": "reported, printed, notified, configured: say which",
    r"\bcan(not|'t)? be told\b": "known, determined",
    r"\bwho(m)?ever\b": "name the subject: any program that, every caller that",
    r"\bof which\b": "begin a new sentence",
    r"\b(has|have|had|is|are) (it|them|there) no more\b": "no longer",
    r"\bno more[.,;)]": "no longer, nothing further",
    r"\bfares?\b": "state, result",
    r"\bbefall": "affects",
    r"\bto and fro\b": "both ways",
    r"\bfor whom\b": "name the subject",
    r"\b(is|are|was|were) to be\b": "must be, will be, should be",
    r"\bbut for\b": "except, apart from",
    r"\bone less\b": "one fewer",
    r"\bheed(s|ed|ing)?\b": "accept, follow, obey",
    r"\bupon\b": "on, then",
    r"\bdesign, section": "name a page of this repository",
    r"\b(?-i:TODO|FIXME|XXX)\b": "do it, or write down why not",
}

TEXTS = ("*.py", "*.md", "*.proto", "*.toml", "*.yaml", "*.yml", "*.service", "*.conf", "*.c", "*.sh", "*.example")

FOLDERS = ("ipamd", "cni_shim", "proto", "tests", "docs", "deploy", "systemd", ".ci")


def generated(file: Path) -> bool:
    return "_pb2" in file.name


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders or FOLDERS:
        yield from (file for file in sorted((ROOT / folder).rglob("*.py")) if not generated(file))


def texts() -> Iterator[Path]:
    yield from (
        ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "config.toml.example")
    )
    for folder in FOLDERS:
        for pattern in TEXTS:
            yield from (
                file for file in sorted((ROOT / folder).rglob(pattern)) if not generated(file) and file != THIS
            )


def functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield f"{prefix}.{child.name}", child
        if isinstance(child, Function | ast.ClassDef):
            yield from functions(child, f"{prefix}.{child.name}")
        elif isinstance(child, ast.stmt):
            yield from functions(child, prefix)


def complexity(function: Function) -> int:
    """McCabe's number, where each `and`, `or`, `if` of a comprehension and `case` counts as a branch.

    Functions and classes defined inside count by themselves.
    """
    branches = 1
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                continue
            case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While():
                branches += 1
            case ast.ExceptHandler() | ast.match_case():
                branches += 1
            case ast.comprehension(ifs=conditions):
                branches += 1 + len(conditions)
            case ast.BoolOp(values=values):
                branches += len(values) - 1
        waiting.extend(ast.iter_child_nodes(node))
    return branches


def lines(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


@pytest.fixture(scope="module")
def all_functions() -> dict[str, Function]:
    return {
        f"{file.parent.name}/{name}": function
        for file in python_files()
        for name, function in functions(ast.parse(file.read_text()), file.stem)
    }


def over(figures: dict[str, int], limit: int) -> dict[str, int]:
    return {name: figure for name, figure in sorted(figures.items()) if figure > limit}


def judge(figures: dict[str, int], limit: int, frozen: dict[str, int]) -> None:
    exceeding = over(figures, limit)
    worse = {name: figure for name, figure in exceeding.items() if figure > frozen.get(name, limit)}
    assert not worse, f"split what exceeds {limit}, or its figure in the table"
    assert not frozen.keys() - exceeding.keys(), "delete the lines of what is within the limit now"


def test_function_complexity_stays_within_limit(all_functions: dict[str, Function]) -> None:
    figures = {name: complexity(function) for name, function in all_functions.items()}
    judge(figures, MOST_COMPLEXITY, FROZEN_COMPLEXITY)


def test_function_length_stays_within_limit(all_functions: dict[str, Function]) -> None:
    figures = {name: lines(function) for name, function in all_functions.items()}
    judge(figures, MOST_LINES_IN_A_FUNCTION, FROZEN_FUNCTION_LINES)


def test_file_length_stays_within_limit() -> None:
    """Of the product. A file of tests may be longer: it is read one test at a time."""
    files = python_files("ipamd", "cni_shim")
    figures = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    judge(figures, MOST_LINES_IN_A_FILE, FROZEN_FILE_LINES)


def test_test_names_stay_within_limit(all_functions: dict[str, Function]) -> None:
    names = [name for name, function in all_functions.items() if function.name.startswith("test_")]
    long = [name for name in names if len(name.split(".")[-1]) > MOST_CHARACTERS_IN_A_TEST_NAME]
    assert not long, "say subject, behaviour and condition in fewer words"


def test_texts_use_no_banned_phrases() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()} ({better})"
        for file in texts()
        for number, line in enumerate(file.read_text().splitlines(), 1)
        for pattern, better in BANNED.items()
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert not found, "say it in plain words"


@pytest.mark.parametrize(
    ("source", "figure"),
    [
        ("def f(): return 1", 1),
        ("def f(a):\n if a: return 1\n elif a is None: return 2\n return 3", 3),
        ("def f(a):\n return a and a[0] or 1", 3),
        ("def f(a):\n return [b for b in a if b]", 3),
        ("def f(a):\n try: pass\n except OSError: pass\n except ValueError: pass", 3),
        ("def f(a):\n match a:\n  case 1: pass\n  case _: pass", 3),
        ("def f(a):\n def g():\n  if a: pass\n return g", 1),
    ],
)
def test_complexity_counts_each_branch_once(source: str, figure: int) -> None:
    (function,) = ast.parse(source).body
    assert isinstance(function, Function) and complexity(function) == figure
