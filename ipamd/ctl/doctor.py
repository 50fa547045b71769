"""`ipamctl doctor`: the preflight as a table or as JSON.

Exit codes: 0 nothing to do, 1 something fails or the settings can't be read, 3 nothing fails but something warns.
"""

from __future__ import annotations

import argparse
import logging
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import structlog

from ipamd.config.error import SettingsError
from ipamd.config.load import load
from ipamd.ctl.command import ATTENTION, DONE, NOT_DONE, Failed, manual
from ipamd.ctl.output import Answer, show
from ipamd.doctor import Finding, State, examine, exit_code, gather
from ipamd.settings import DEFAULT_PATH

# Long texts are wrapped, so that the table fits a terminal of usual width.
_WIDTH = 100


def set_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"the daemon's settings (default: {DEFAULT_PATH})"
    )
    manual(
        parser,
        "Each finding comes with its remedy: the file and the lines to write, or the command. It changes nothing. "
        "Run it as root.",
        examples={
            "ipamctl doctor": "what has to be done stands last",
            "ipamctl doctor -o json": "a list of objects with check, state, found, remedy",
        },
        codes={
            DONE: "nothing to do",
            NOT_DONE: "something fails, or the settings can't be read",
            ATTENTION: "nothing fails, something warns",
        },
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    try:
        loaded = load(args.config)
    except SettingsError as error:
        raise Failed(str(error)) from None
    with _unlogged():
        findings = list(examine(gather(loaded.settings)))
    show(_table(findings), args.output)
    return exit_code(findings)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Silences the daemon's parts that ask EC2: here the findings report their faults."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def _table(findings: list[Finding]) -> Answer:
    """Findings that need action are last, where a terminal shows them."""
    order = list(State)
    rows = []
    for finding in sorted(findings, key=lambda finding: order.index(finding.state)):
        found = textwrap.wrap(finding.found, _WIDTH, break_long_words=False, break_on_hyphens=False)
        remedy = textwrap.wrap(
            f"-> {finding.remedy}" if finding.remedy else "",
            _WIDTH,
            subsequent_indent="   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for index, line in enumerate([*found, *remedy]):
            rows.append((finding.state.value if not index else "", finding.check if not index else "", line))
    data = [asdict(finding) for finding in findings]
    return Answer(data, ("state", "check", "found -> remedy"), tuple(rows))
