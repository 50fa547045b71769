"""What EC2 says to this node, asked in earnest: with the daemon's own client, its settings and its credentials."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ipamd.cloud.budget import RateBudget
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.imds import Imds
from ipamd.cloud.port import CloudError, Identity
from ipamd.settings import Settings

# Seconds for all of it: somebody waits.
_PATIENCE = 15.0

_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass(frozen=True, slots=True)
class CloudAnswer:
    """`failed`: at what the question ended, and `error` why, in words that say what to do. `enis`: how many EC2 knows
    of this node. `proxies`: variables of `environment_of` that send HTTP elsewhere, without passwords."""

    identity: Identity | None = None
    failed: str = ""
    error: str = ""
    enis: int = 0
    proxies: Mapping[str, str] = field(default_factory=dict)
    environment_of: str = "this command"


def ask(settings: Settings, daemon_pid: int | None, *, answers: bool) -> CloudAnswer:
    """One DescribeNetworkInterfaces, if the metadata service `answers`, which says where to ask. Blocks for up to
    15 s. Raises nothing."""
    proxies, whose = _proxies(daemon_pid)
    answer = asyncio.run(_ask(settings)) if answers else CloudAnswer(failed="identity")
    return CloudAnswer(answer.identity, answer.failed, answer.error, answer.enis, proxies, whose)


async def _ask(settings: Settings) -> CloudAnswer:
    identity: Identity | None = None
    step = "identity"
    budget = RateBudget()
    try:
        async with asyncio.timeout(_PATIENCE):
            async with Imds(settings.imds.endpoint) as imds:
                identity = await imds.identity()
            step = "credentials"
            async with Ec2(settings.ec2, settings.imds, identity, budget) as ec2:
                await ec2.connect()
                step = "EC2"
                return CloudAnswer(identity, enis=len(await ec2.describe_enis()))
    except CloudError as error:
        failure = error.failure
        return CloudAnswer(identity, step, f"{failure.code}: {failure.message}".removesuffix("."))
    except TimeoutError:
        return CloudAnswer(identity, step, f"no answer within {_PATIENCE:g} s")
    finally:
        budget.close()


def _proxies(pid: int | None) -> tuple[dict[str, str], str]:
    """Those of the running daemon, else of this process, which may have others than the daemon will have."""
    environ, whose = dict(os.environ), "this command"
    if pid:
        try:
            pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            pass
        else:
            environ, whose = dict(pair.split("=", 1) for pair in pairs if "=" in pair), "the daemon"
    found = {name: environ.get(name) or environ.get(name.lower()) or "" for name in _PROXIES}
    return {name: _without_password(value) for name, value in found.items() if value}, whose


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no URL)"
    return parts._replace(netloc=f"...@{parts.netloc.rpartition('@')[2]}").geturl() if "@" in parts.netloc else url
