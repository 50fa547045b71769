"""Fuzz one target with atheris: `python tests/fuzz/run.py TARGET [libFuzzer's options]`, for instance
`python tests/fuzz/run.py peer_frames -max_total_time=600`. Ends with status 77 at the first defect."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cni_shim", "ipamd.api", "ipamd.pool.quoting"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="ipm") as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], corpus, *options], target.check)
        atheris.Fuzz()


main()
