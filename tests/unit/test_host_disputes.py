"""Who insists is answered ever more slowly, and forgotten once he lets go."""

from __future__ import annotations

from ipamd.host.disputes import CALM, FREE_REPAIRS, LONGEST_DELAY, Disputes

RULE = "rule 1501 lookup 1501"


def repaired(times: int, *, every: float = 0.1) -> tuple[Disputes, float]:
    disputes, now = Disputes(), 1000.0
    for _ in range(times):
        now += every
        disputes.repaired(RULE, "NetworkManager (pid 7)", now)
    return disputes, now


def test_the_first_repairs_come_at_once() -> None:
    for times in range(1, FREE_REPAIRS):
        disputes, now = repaired(times)
        assert disputes.due(RULE) <= now
        assert disputes.open() == ()


def test_repairs_become_rarer_up_to_a_limit() -> None:
    delays = []
    for times in range(FREE_REPAIRS, FREE_REPAIRS + 8):
        disputes, now = repaired(times)
        (dispute,) = disputes.open()
        delays.append(dispute.delay)
        assert disputes.due(RULE) == now + dispute.delay
    assert delays == [1, 2, 4, 8, *[LONGEST_DELAY] * 4]


def test_nothing_else_has_to_wait() -> None:
    disputes, now = repaired(10)
    assert disputes.due("rule 1502 lookup 1502") <= now


def test_dispute_ends_after_a_long_time_without_changes() -> None:
    disputes, now = repaired(FREE_REPAIRS)
    assert disputes.calm_at() == now + CALM
    assert disputes.settled(now + CALM - 1) == []
    assert [dispute.what for dispute in disputes.settled(now + CALM)] == [RULE]
    assert disputes.open() == ()
    assert disputes.calm_at() is None


def test_a_single_repair_is_forgotten_without_a_word() -> None:
    disputes, now = repaired(1)
    assert disputes.settled(now + CALM) == []
    assert disputes.calm_at() is None
