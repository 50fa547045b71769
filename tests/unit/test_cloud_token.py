"""ClientTokens that carry their time."""

from __future__ import annotations

from uuid import RFC_4122, UUID

import pytest

from ipamd.cloud.token import new_token, time_of


def test_a_token_is_a_uuid_of_version_7_that_tells_its_time() -> None:
    token = new_token(1_800_000_000.1234)
    assert (UUID(token).version, UUID(token).variant) == (7, RFC_4122)
    assert time_of(token) == 1_800_000_000.123
    assert token.startswith("01a3185c-5")  # the milliseconds, in hexadecimal


def test_tokens_of_one_moment_differ() -> None:
    assert len({new_token(1.0) for _ in range(1000)}) == 1000


def test_the_standards_own_example() -> None:
    """RFC 9562, appendix A.6: 2022-02-22 14:22:22 in UTC-5."""
    assert time_of("017F22E2-79B0-7CC3-98C4-DC0C0C07398F") == 1645557742.0


@pytest.mark.parametrize("token", ["", "once", "37038f11-f48a-4db0-af6b-0e7ebc158009", "attach eni-1"])
def test_other_tokens_tell_nothing(token: str) -> None:
    assert time_of(token) is None
