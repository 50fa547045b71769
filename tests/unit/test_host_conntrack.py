"""What a kernel without connection tracking, or one that refuses, makes of forgetting an address."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipamd.host import HostError, conntrack
from ipamd.host.conntrack import Conntrack


def failing(code: int) -> Callable[[bytes], int]:
    def fail(_address: bytes) -> int:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.EPROTONOSUPPORT, errno.EINVAL])
async def test_where_nothing_is_tracked_nothing_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    monkeypatch.setattr(conntrack, "_forget", failing(code))
    monkeypatch.setattr(conntrack, "_COUNT", tmp_path / "absent")
    table = Conntrack()
    with capture_logs() as logs:
        assert await table.forget(["10.0.0.1"]) == 0
        assert await table.forget(["10.0.0.2"]) == 0
    assert [entry["event"] for entry in logs] == ["host.no_conntrack"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EINVAL, "10.0.0.1 .*load its module nf_conntrack_netlink"),
        (errno.EPROTONOSUPPORT, "load its module nf_conntrack_netlink"),
        (errno.EPERM, "run as root"),
        (errno.EBUSY, "busy$"),
    ],
)
async def test_what_the_kernel_refuses_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, words: str
) -> None:
    monkeypatch.setattr(conntrack, "_forget", failing(code))
    monkeypatch.setattr(conntrack, "_COUNT", tmp_path)
    with pytest.raises(HostError, match=words):
        await Conntrack().forget(["10.0.0.1"])
