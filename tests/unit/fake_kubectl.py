"""A kubectl that answers as a test tells it, and writes down how it was called."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_PROGRAM = """#!{python} -IS
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
for answer in json.loads((here / "answers").read_text()):
    if all(word in sys.argv for word in answer["words"]):
        sys.stdout.write(answer["out"])
        sys.stderr.write(answer["err"])
        sys.exit(answer["code"])
sys.exit("fake kubectl: no answer for " + repr(sys.argv[1:]))
"""


class FakeKubectl:
    """`folder` is to stand on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._answers: list[dict[str, Any]] = []
        program = folder / "kubectl"
        program.write_text(_PROGRAM.format(python=sys.executable))
        program.chmod(0o755)
        (folder / "calls").touch()
        self._write()

    def answers(self, *words: str, out: Any = "", err: str = "", code: int = 0) -> None:
        """To a call that has all these words. `out`: text, or an object for JSON. The latest that fits counts."""
        text = out if isinstance(out, str) else json.dumps(out)
        self._answers.insert(0, {"words": words, "out": text, "err": err, "code": code})
        self._write()

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def _write(self) -> None:
        (self.folder / "answers").write_text(json.dumps(self._answers))
