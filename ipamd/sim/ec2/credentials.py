"""Temporary credentials, one set for each instance's role, by which a call is attributed to an instance.

The signature itself isn't verified: the access key and the session token are enough to say who calls.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ipamd.sim.ec2.rules import Ec2Error

OPERATOR: Final = "operator"  # who calls with `Keyring.operator`: tests and people, not an instance

_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([A-Za-z0-9]+)/\d{8}/[^/]+/ec2/aws4_request,.*", re.S
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """`expires` None: long-term credentials, which have no session token."""

    owner: str
    access_key: str
    secret_key: str
    token: str
    issued: datetime
    expires: datetime | None


class Keyring:
    """Issues credentials and recognises them. `lifetime` is in seconds; 6 h is what EC2 gives to a role."""

    def __init__(self, lifetime: float = 6 * 3600) -> None:
        self.lifetime = lifetime
        self._issued: dict[str, Credentials] = {}
        self._current: dict[str, Credentials] = {}
        self.operator = self._remember(
            Credentials(OPERATOR, f"AKIA{_letters(16)}", secrets.token_urlsafe(30), "", datetime.now(UTC), None)
        )

    def credentials(self, instance_id: str) -> Credentials:
        """What instance metadata hands out: the same until a quarter of the lifetime is left, then new ones.

        Earlier ones stay good until they expire.
        """
        now = time.time()
        current = self._current.get(instance_id)
        if current and current.expires and current.expires.timestamp() - now > self.lifetime / 4:
            return current
        issued = datetime.fromtimestamp(now, UTC)
        expires = datetime.fromtimestamp(now + self.lifetime, UTC)
        new = Credentials(
            instance_id, f"ASIA{_letters(16)}", secrets.token_urlsafe(30), secrets.token_urlsafe(120), issued, expires
        )
        self._current[instance_id] = new
        return self._remember(new)

    def revoke(self, instance_id: str) -> None:
        self._current.pop(instance_id, None)
        self._issued = {key: c for key, c in self._issued.items() if c.owner != instance_id}

    def caller(self, headers: Mapping[str, str]) -> str:
        """The instance id (or `OPERATOR`) that these request headers name. Raises `Ec2Error`."""
        match = _AUTHORIZATION.fullmatch(headers.get("Authorization", ""))
        known = self._issued.get(match[1]) if match else None
        if known is None or headers.get("X-Amz-Security-Token", "") != known.token:
            raise Ec2Error("AuthFailure", "AWS was not able to validate the provided access credentials")
        if known.expires is not None and known.expires.timestamp() <= time.time():
            raise Ec2Error("RequestExpired", "Request has expired.")
        return known.owner

    def _remember(self, credentials: Credentials) -> Credentials:
        self._issued[credentials.access_key] = credentials
        return credentials


def _letters(count: int) -> str:
    return "".join(secrets.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") for _ in range(count))
