"""ipamctl explain and audit: sentences, mismatches and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import explain
from tests.unit.ctl_daemon import SINCE, Daemon, ipamctl

WAITS = pb.Explanation(
    state="waiting",
    headline="Pod shop/web-0 has waited 12 s for an address, third of five.",
    because=["No address is free: 27 are assigned.", "EC2 said SubnetFull " + "and went on " * 12],
    next=["In 4 s the next address has cooled down."],
    advice=["Add a subnet."],
    numbers={"waiting": 5, "free": 0},
)


def test_an_explanation_is_paragraphs_within_the_width() -> None:
    lines = explain.paragraphs(WAITS, 60)
    assert lines[0] == "Pod shop/web-0 has waited 12 s for an address, third of"
    assert [line for line in lines if line in ("Because", "Next", "What to do")] == ["Because", "Next", "What to do"]
    assert "  - No address is free: 27 are assigned." in lines and "  - Add a subnet." in lines
    assert max(map(len, lines)) <= 60
    assert explain.paragraphs(pb.Explanation(headline="All is well."), 60) == ["All is well."]


def test_explain_pod_asks_for_pod_and_tells_script_that_it_waits(at: Path, daemon: Daemon) -> None:
    daemon.explanation = WAITS
    done = ipamctl("explain", "pod", "shop/web-0", "--socket", at)
    assert (done.returncode, done.stderr) == (3, "")
    assert daemon.requests == [pb.ExplainRequest(pod="shop/web-0")]
    told = json.loads(ipamctl("explain", "pod", "shop/web-0", "--socket", at, "-o", "json").stdout)
    assert (told["state"], told["numbers"]) == ("waiting", {"free": 0.0, "waiting": 5.0})
    assert told["because"] == list(WAITS.because) and told["advice"] == ["Add a subnet."]


@pytest.mark.parametrize(("state", "code"), [("steady", 0), ("growing", 0), ("blocked", 3), ("drained", 3)])
def test_explain_pool_ends_with_its_state(at: Path, daemon: Daemon, state: str, code: int) -> None:
    daemon.explanation = pb.Explanation(state=state, headline="So it is.")
    done = ipamctl("explain", "pool", "--socket", at)
    assert (done.returncode, done.stdout) == (code, "So it is.\n")
    assert daemon.requests == [pb.ExplainRequest(pool=pb.PoolSubject())]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("10.0.0.9",), pb.ExplainRequest(address="10.0.0.9")),
        (("pod", "10.0.0.9"), pb.ExplainRequest(address="10.0.0.9")),
        (("shop/web-0",), pb.ExplainRequest(pod="shop/web-0")),
        (("ipm54aefac1b17b",), pb.ExplainRequest(pod="ipm54aefac1b17b")),
        (("pod", "pool"), pb.ExplainRequest(pod="pool")),
    ],
)
def test_explain_finds_out_what_kind_of_thing_is_named(
    at: Path, daemon: Daemon, words: tuple[str, ...], asked: pb.ExplainRequest
) -> None:
    assert ipamctl("explain", *words, "--socket", at).returncode == 0
    assert daemon.requests == [asked]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(("pool", "x"), "the pool has no name"), (("pod",), "say which pod"), (("pods", "x"), "explain one thing")],
)
def test_explain_says_which_word_is_wrong(words: tuple[str, ...], complaint: str) -> None:
    done = ipamctl("explain", *words)
    assert done.returncode == 2 and complaint in done.stderr


def test_a_pod_that_nobody_knows_is_1(at: Path, daemon: Daemon) -> None:
    daemon.error = (grpc.StatusCode.NOT_FOUND, "no pod web-9")
    done = ipamctl("explain", "pod", "web-9", "--socket", at)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "ipamctl: no pod web-9\n")


def test_an_audit_that_finds_nothing_is_0(at: Path, daemon: Daemon) -> None:
    done = ipamctl("audit", "--socket", at)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "EC2, the records and the kernel say the same.")
    assert "Compared at 2027-01-15T08:00:00Z: ENIs 2, addresses 10, attachments 2, routes 2" in done.stdout


def test_a_mismatch_is_1_and_says_what_follows(at: Path, daemon: Daemon) -> None:
    daemon.audit.mismatches.add(
        kind="route_missing", subject="10.0.0.9", ledger="assigned to shop/web-0", kernel="no route in table 1500",
        meaning="The pod has no network.", remedy="The daemon writes it again at once.",
    )  # fmt: skip
    done = ipamctl("audit", "--socket", at)
    assert done.returncode == 1
    assert done.stdout.splitlines()[3:] == [
        "10.0.0.9: route_missing",
        "  ledger   assigned to shop/web-0",
        "  kernel   no route in table 1500",
        "  meaning  The pod has no network.",
        "  remedy   The daemon writes it again at once.",
    ]
    done = ipamctl("audit", "--socket", at, "-o", "json")
    [mismatch] = json.loads(done.stdout)["mismatches"]
    assert (done.returncode, mismatch["ec2"], mismatch["kind"]) == (1, None, "route_missing")


def test_an_audit_that_could_not_be_made_is_4(at: Path, daemon: Daemon, tmp_path: Path) -> None:
    daemon.error = (grpc.StatusCode.UNAVAILABLE, "EC2 does not answer")
    done = ipamctl("audit", "--socket", at)
    assert (done.returncode, done.stderr) == (4, "ipamctl: EC2 does not answer\n")
    assert ipamctl("audit", "--socket", tmp_path / "none").returncode == 4
    assert daemon.audit.at == SINCE
