"""What a kubelet's log says of its pods' starts."""

from __future__ import annotations

import pytest

from tests.kubernetes.starting import durations, seconds

LOG = """\
I1130 00:28:28.1 49 pod_startup_latency_tracker.go:104] "Observed pod startup duration" pod="default/r1-0" \
podStartSLOduration=1.2 podStartE2EDuration="1.25s" podCreationTimestamp="2026-11-30 00:28:27 +0000 UTC"
I1130 00:28:28.2 49 pod_startup_latency_tracker.go:104] "Observed pod startup duration" pod="default/r2-0" \
podStartSLOduration=61 podStartE2EDuration="1m1s" podCreationTimestamp="2026-11-30 00:28:27 +0000 UTC"
I1130 00:28:28.3 49 kubelet.go:1] "SyncLoop UPDATE" source="api" pods=["default/r1-0"]
"""


@pytest.mark.parametrize(("text", "expected"), [("1.5s", 1.5), ("950ms", 0.95), ("1m2.5s", 62.5), ("1h0m1s", 3601.0)])
def test_gos_durations_are_read(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


def test_the_pods_of_a_round_are_told_from_others() -> None:
    assert durations(LOG, "r1-") == {"r1-0": 1.25}
