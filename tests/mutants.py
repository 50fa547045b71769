"""Do the unit tests notice when the pool is wrong? Changes one spot of ipamd/pool at a time and runs them.

`python -m tests.mutants --count 100 --seed 7` draws a sample of all spots, the same for the same seed and code. It
runs the tests against each mutant and prints the survivors as diffs. A survivor is either a case that no test
describes, or a change without an effect. Not part of CI: a hundred mutants take some ten minutes of CPU time.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from random import Random
from types import ModuleType

import aiobotocore.session  # type: ignore[import-untyped]  # noqa: F401 (slow to import: once, not for each mutant)
import grpc.aio  # noqa: F401
import hypothesis.stateful  # noqa: F401
import pydantic  # noqa: F401
import pytest
import pytest_asyncio  # noqa: F401
import structlog  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]

# A mutant that loops is killed after so many times the CPU time of a run without a mutant.
PATIENCE = 5

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """`text` is the whole file with one change, which is at `line` of the original."""

    file: Path
    line: int
    text: str


def spots(tree: ast.Module) -> Iterator[tuple[int, ast.AST, str]]:
    """Where something can be changed, and how: (place in the walk of the tree, node, kind of change)."""
    skipped = {id(inner) for node in ast.walk(tree) for inner in not_executed(node)}
    for place, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        match node:
            case ast.Compare() | ast.BoolOp() | ast.BinOp(op=ast.Add() | ast.Sub()):
                yield place, node, "swap"
            case ast.AugAssign(op=ast.Add() | ast.Sub()):
                yield place, node, "swap"
            case ast.UnaryOp(op=ast.Not()):
                yield place, node, "not"
            case ast.Name(id=name) if name in NAMES:
                yield place, node, "name"
            case ast.Constant(value=bool() | int() | float()):
                yield place, node, "constant"
            case ast.If() | ast.IfExp() | ast.While():
                yield place, node, "never"
            case (
                ast.Expr(value=ast.Call()) | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Continue()
            ):
                yield place, node, "delete"


def not_executed(node: ast.AST) -> Iterator[ast.AST]:
    """Annotations, and what is in a class or a module outside of any function: types, tables and defaults."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            for part in (node.args, *node.decorator_list, *([node.returns] if node.returns else ())):
                yield from ast.walk(part)
        case ast.AnnAssign():
            yield from ast.walk(node.annotation)
        case ast.ClassDef(decorator_list=decorators):
            for part in decorators:
                yield from ast.walk(part)
    match node:
        case ast.ClassDef() | ast.Module():
            for statement in node.body:
                if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield from ast.walk(statement)


def changed(node: ast.AST, kind: str) -> ast.AST | None:
    """What stands in the node's place; None: nothing was changed."""
    match node, kind:
        case ast.Compare(ops=[first, *rest]), "swap" if type(first) in SWAPS:
            node.ops = [SWAPS[type(first)](), *rest]  # type: ignore[list-item]
        case ((ast.BoolOp() | ast.BinOp() | ast.AugAssign()), "swap"):
            node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
        case ast.UnaryOp(operand=operand), "not":
            return operand
        case ast.Name(), "name":
            node.id = NAMES[node.id]
        case ast.Constant(value=bool(value)), "constant":
            node.value = not value
        case ast.Constant(value=int(value) | float(value)), "constant":
            node.value = value + 1
        case ((ast.If() | ast.IfExp() | ast.While()), "never"):
            node.test = ast.copy_location(ast.Constant(False), node.test)
        case _, "delete":
            return ast.copy_location(ast.Pass(), node)
        case _:
            return None
    return node


def mutant(file: Path, tree: ast.Module, place: int, kind: str) -> Mutant | None:
    tree = copy.deepcopy(tree)
    node = next(node for number, node in enumerate(ast.walk(tree)) if number == place)
    line = node.lineno  # type: ignore[attr-defined]
    new = changed(node, kind)
    if new is None:
        return None

    replacement: ast.AST = new

    class Replacing(ast.NodeTransformer):
        def visit(self, visited: ast.AST) -> ast.AST:
            return replacement if visited is node else self.generic_visit(visited)

    return Mutant(file, line, ast.unparse(ast.fix_missing_locations(Replacing().visit(tree))) + "\n")


def sample(folder: Path, count: int, seed: int) -> list[Mutant]:
    files = sorted(folder.rglob("*.py"))
    trees = {file: ast.parse(file.read_text()) for file in files}
    places = [(file, place, kind) for file in files for place, _, kind in spots(trees[file])]
    Random(seed).shuffle(places)
    mutants: list[Mutant] = []
    for file, place, kind in places:
        if len(mutants) == count:
            break
        if (made := mutant(file, trees[file], place, kind)) is not None:
            mutants.append(made)
    return mutants


class Mutated(MetaPathFinder, Loader):
    """Imports the mutant in place of its file."""

    def __init__(self, made: Mutant) -> None:
        self._made = made
        parts = made.file.relative_to(ROOT).with_suffix("").parts
        self._name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return spec_from_loader(name, self, origin=str(self._made.file)) if name == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._made.text, self._made.file, "exec"), module.__dict__)


def start(made: Mutant | None, tests: list[str], limit: int) -> int:
    """Run the tests in a process of its own, with what is slow to import already there; returns its id.

    A mutant that loops ends by the `limit` of CPU seconds: a busy machine kills none.
    """
    process = os.fork()
    if process:
        return process
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if made is not None:
        sys.meta_path.insert(0, Mutated(made))
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])
    os._exit(int(code))


def survivors_of(mutants: list[Mutant], tests: list[str], limit: int, jobs: int) -> Iterator[Mutant]:
    waiting, running, tried = list(reversed(mutants)), dict[int, Mutant](), 0
    while waiting or running:
        while waiting and len(running) < jobs:
            made = waiting.pop()
            running[start(made, tests, limit)] = made
        process, status = os.wait()
        tried += 1
        print(f"{tried} of {len(mutants)} tried", file=sys.stderr, flush=True)
        made = running.pop(process)
        if status == 0:
            yield made


def diff(made: Mutant) -> str:
    name = str(made.file.relative_to(ROOT))
    before = ast.unparse(ast.parse(made.file.read_text())).splitlines()
    lines = difflib.unified_diff(before, made.text.splitlines(), name, name, lineterm="", n=2)
    return "\n".join([f"--- {name}:{made.line}", *list(lines)[2:]])


def tests_of_the_pool() -> list[str]:
    unit = ROOT / "tests" / "unit"
    files = (*sorted(unit.glob("test_pool*.py")), *sorted(unit.glob("test_life*.py")), unit / "test_plan.py")
    return [str(path.relative_to(ROOT)) for path in files]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="mutants to draw (default: 100)")
    parser.add_argument("--seed", type=int, default=7, help="of the sample (default: 7)")
    parser.add_argument("--folder", type=Path, default=ROOT / "ipamd" / "pool", help="what is changed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument(
        "tests",
        nargs="*",
        help="files of tests (default: those of the pool in tests/unit)",
    )
    args = parser.parse_args()
    tests = args.tests or tests_of_the_pool()
    mutants = sample(args.folder.resolve(), args.count, args.seed)
    begun = os.times().children_user
    _, status = os.waitpid(start(None, tests, resource.RLIM_INFINITY), 0)
    if status != 0:
        print("the tests fail without a mutant")
        return 2
    limit = max(int(PATIENCE * (os.times().children_user - begun)), PATIENCE)
    survivors = 0
    for made in survivors_of(mutants, tests, limit, args.jobs):
        survivors += 1
        print(f"{diff(made)}\n", flush=True)
    print(f"{survivors} of {len(mutants)} mutants survive (seed {args.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
