"""What status and top say of ENIs and pods: each number is what its label says."""

from __future__ import annotations

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl.slots import enis_and_pods
from ipamd.ctl.status import screen
from tests.unit.ctl_daemon import SINCE, well


def node(slots: pb.Slots, max_enis: int = 3, max_pods: int = 27) -> pb.Node:
    made = well()
    made.slots.CopyFrom(slots)
    made.targets.max_enis, made.targets.max_pods = max_enis, max_pods
    return made


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (node(pb.Slots(enis=1)), "1 of 3 (type m5.large; pool.max_enis not set), 9 addresses each; pods 3 of 27"),
        (
            node(pb.Slots(enis=2, eni_limit=2), 2, 18),
            "2 of 2 (pool.max_enis; type m5.large has 3), 9 addresses each; pods 3 of 18",
        ),
        (
            node(pb.Slots(enis=2), 2, 18),
            "2 of 2 (EC2 refuses more; type m5.large has 3), 9 addresses each; pods 3 of 18",
        ),
        (
            node(pb.Slots(enis=3, foreign=1), 3, 18),
            "3 of 3 (type m5.large; pool.max_enis not set), 1 of them somebody else's, 9 addresses each; "
            "pods 3 of 18",
        ),
        (
            node(pb.Slots(enis=4, pod_limit=4), 3, 4),
            "4 of 3 (type m5.large; pool.max_enis not set), 9 addresses each; pods 3 of 4 (pool.max_pods)",
        ),
    ],
)
def test_enis_and_pods_say_what_there_is_and_what_bounds_it(shown: pb.Node, words: str) -> None:
    assert enis_and_pods(shown) == words


def rows(*enis: pb.Eni) -> list[list[str]]:
    lines = screen(node(pb.Slots(enis=len(enis))), enis, [], SINCE.seconds + 20, 120)
    start = next(number for number, line in enumerate(lines) if line.startswith("ENI "))
    return [line.split() for line in lines[start : start + 1 + len(enis)]]


def test_a_full_eni_has_no_room() -> None:
    head, row = rows(pb.Eni(id="eni-1", state="ready", link="eth0", assigned=9, capacity=9, room=0))
    assert head[-1] == "ROOM" and row[-1] == "0"


def test_prefixes_and_cards_are_shown_where_there_are_any() -> None:
    own = pb.Eni(
        id="eni-1", state="ready", link="eth0", assigned=2, capacity=9, room=3, prefixes=["a", "b", "c", "d"]
    )
    far = pb.Eni(id="eni-2", state="foreign", device_index=1, network_card=7)
    head, first, second = rows(far, own)
    assert head[-2:] == ["PREFIXES", "ROOM"] and first[-2:] == ["4", "3"]
    assert second[:4] == ["eni-2", "foreign,", "card", "7"]
