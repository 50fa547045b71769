"""ClientTokens that carry their time.

An ENI's tags say since when there is one, and EC2 refuses a ClientToken that comes again with other tags
(IdempotentParameterMismatch). So the time has to come from what is on record of a creation, which is its token: a
UUID of version 7 (RFC 9562, section 5.7), which begins with the milliseconds since the epoch.
"""

from __future__ import annotations

import secrets
from uuid import RFC_4122, UUID

_RANDOM_BITS = 80


def new_token(now: float) -> str:
    """Unique; `now` in seconds since the epoch."""
    bits = int(now * 1000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    # The version's four bits come after the time, the variant's two twelve bits later.
    bits = bits & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    return str(UUID(int=bits))


def time_of(token: str) -> float | None:
    """When the token was made, in seconds since the epoch; None for one that does not say."""
    try:
        uuid = UUID(token)
    except ValueError:
        return None
    return (uuid.int >> _RANDOM_BITS) / 1000 if uuid.variant == RFC_4122 and uuid.version == 7 else None
