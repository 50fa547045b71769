"""`ipamctl doctor`: the preflight as a table or as JSON.

Exit codes: 0 nothing to do, 1 something fails or the settings can't be read, 3 nothing fails but something warns.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path

from ipamd import settings
from ipamd.ctl.table import render
from ipamd.ctl.views import Answer
from ipamd.doctor import Finding, State, examine, exit_code, gather

# Long texts go on in the next line, so that a table stays one on a terminal of usual width.
_WIDTH = 100


def examined(config: Path | None, *, as_json: bool) -> tuple[str, int]:
    """What to print, and the exit code. Raises `SettingsError`."""
    loaded = settings.load(config)
    findings = list(examine(gather(loaded.settings)))
    if as_json:
        return json.dumps([asdict(finding) for finding in findings], indent=2), exit_code(findings)
    return _table(findings), exit_code(findings)


def _table(findings: list[Finding]) -> str:
    """What has to be done stands last, where a terminal shows it."""
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
    return render(Answer(None, ("state", "check", "found -> remedy"), tuple(rows)))
