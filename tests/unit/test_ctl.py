"""ipamctl as a process, against a daemon's socket with an answer that the test wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1 import introspection_pb2_grpc

SINCE = Timestamp(seconds=1_800_000_000)  # 2027-01-15T08:00:00Z
UNTIL = Timestamp(seconds=1_800_000_060)
BUDGET = [
    pb.Bucket(
        action="AssignPrivateIpAddresses", rate=0.4, tokens=0.25, waiting=3, throttled=4,
        waits=[
            pb.Waits(priority="pod", waiting=1, count=20, delayed=9, total=7.5, longest=2.125),
            pb.Waits(priority="warm", waiting=2, count=5, delayed=3, total=1.5, longest=1.0),
            pb.Waits(priority="release"),
        ],
    ),
    pb.Bucket(
        action="CreateNetworkInterface", rate=0.5, tokens=19, waits=[pb.Waits(priority="pod", count=1)],
    ),
    pb.Bucket(action="DescribeNetworkInterfaces", rate=0.5, throttled=1),
]  # fmt: skip


class Daemon(introspection_pb2_grpc.IntrospectionServicer):
    def __init__(self) -> None:
        self.pods = 2
        self.host = pb.HostNetwork()
        self.error: tuple[grpc.StatusCode, str] | None = None

    def GetNode(self, request: pb.GetNodeRequest, context: grpc.ServicerContext) -> pb.Node:
        if self.error is not None:
            context.abort(*self.error)
        return pb.Node(
            instance_id="i-1", instance_type="m5.large", availability_zone="eu-1a", version="1", started=SINCE,
            counts=pb.Counts(free=5, assigned=3, cooling=2, releasing=0, pending=1, waiting=4, total=10),
            targets=pb.Targets(warm_ips=5, minimum_ips=0, max_pods=27, cooldown=30, allocate_wait=30),
            max_enis=3, addresses_per_eni=9, ready=False, not_ready_reason="NOT_AUTHORIZED: no",
            backoffs=[pb.Backoff(scope="new ENIs", reason="ENI_LIMIT", message="Attach: no", until=UNTIL)],
            budget=BUDGET, host=self.host,
        )  # fmt: skip

    def ListEnis(self, request: pb.ListEnisRequest, context: grpc.ServicerContext) -> pb.ListEnisReply:
        return pb.ListEnisReply(
            enis=[
                pb.Eni(
                    id="eni-0", primary=True, state="ready", link="ens5", primary_ip="10.0.0.4", free=5, assigned=3,
                    cooling=2, capacity=9, foreign=1,
                ),
                pb.Eni(id="", device_index=1, state="creating", pending=1, capacity=9),
            ]
        )  # fmt: skip

    def ListAttachments(
        self, request: pb.ListAttachmentsRequest, context: grpc.ServicerContext
    ) -> pb.ListAttachmentsReply:
        return pb.ListAttachmentsReply(
            attachments=[
                pb.AttachmentInfo(
                    network="ipamd", container_id=f"{n:064x}", ifname="eth0", ip=f"10.0.{n // 250}.{n % 250}",
                    eni="eni-0", pod_name=f"web-{n}", pod_namespace="shop", since=SINCE, host_ifname=f"veth{n}",
                )
                for n in reversed(range(self.pods))
            ]
        )  # fmt: skip


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    answers = Daemon()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    introspection_pb2_grpc.add_IntrospectionServicer_to_server(answers, server)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    server.start()
    yield answers
    server.stop(0).wait()


def ipamctl(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ipamd.ctl", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, "COLUMNS": "100"})


def answer(tmp_path: Path, *words: str) -> Any:
    done = ipamctl("--socket", tmp_path / "s", "-o", "json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_status_as_json_has_the_promised_keys(tmp_path: Path, daemon: Daemon) -> None:
    status = answer(tmp_path, "status")
    assert {name: status[name] for name in ("free", "assigned", "cooling", "pending", "waiting", "total")} == {
        "free": 5, "assigned": 3, "cooling": 2, "pending": 1, "waiting": 4, "total": 10,
    }  # fmt: skip
    promised = {"warm_ips": 5, "minimum_ips": 0, "max_pods": 27, "cooldown": 30.0, "allocate_wait": 30.0}
    assert promised.items() <= status["targets"].items()
    assert (status["ready"], status["not_ready_reason"]) == (False, "NOT_AUTHORIZED: no")
    assert status["backoffs"][0]["until"] == "2027-01-15T08:01:00Z"


def test_a_network_that_nobody_else_changed_is_not_worth_a_line(tmp_path: Path, daemon: Daemon) -> None:
    host = answer(tmp_path, "status")["host"]
    assert (host["in_order"], host["repairs"], host["last_repair"]) == (True, 0, None)
    assert "network" not in ipamctl("status", "--socket", tmp_path / "s").stdout


def test_status_tells_what_others_do_to_the_network(tmp_path: Path, daemon: Daemon) -> None:
    what, by = "rule 1501 lookup 1501", "systemd-network (pid 412)"
    dispute = pb.Dispute(what=what, by=by, since=SINCE, last=UNTIL, repairs=4, delay=2)
    daemon.host = pb.HostNetwork(
        repairs=5, last_repair=UNTIL, last_what=what, last_by=by, disputes=[dispute], error="ip rule: refused"
    )
    assert ipamctl("status", "--socket", tmp_path / "s").stdout.splitlines()[-6:-3] == [
        "NETWORK NOT IN ORDER: ip rule: refused",
        f"DISPUTED: {what}: repaired 4 times since 2027-01-15T08:00:00Z, changed by {by} (see ipamctl doctor)",
        f"network  5 repairs, the last at 2027-01-15T08:01:00Z: {what}, changed by {by}",
    ]
    host = answer(tmp_path, "status")["host"]
    assert not host["in_order"]
    assert host["disputes"][0]["delay"] == 2


def test_status_as_json_has_the_whole_budget(tmp_path: Path, daemon: Daemon) -> None:
    budget = {bucket["action"]: bucket for bucket in answer(tmp_path, "status")["budget"]}
    assert budget.keys() == {"AssignPrivateIpAddresses", "CreateNetworkInterface", "DescribeNetworkInterfaces"}
    assign = budget["AssignPrivateIpAddresses"]
    assert {name: assign[name] for name in ("rate", "tokens", "waiting", "throttled")} == {
        "rate": 0.4, "tokens": 0.25, "waiting": 3, "throttled": 4,
    }  # fmt: skip
    assert assign["waits"]["pod"] == {"waiting": 1, "count": 20, "delayed": 9, "total": 7.5, "longest": 2.125}


def test_the_table_has_the_part_of_the_budget_that_was_felt(tmp_path: Path, daemon: Daemon) -> None:
    lines = ipamctl("status", "--socket", tmp_path / "s").stdout.splitlines()
    assert [line for line in lines if line.startswith("EC2 budget")] == [
        "EC2 budget: AssignPrivateIpAddresses 0.4/s, 3 waiting, 12 waited (longest 2.1 s), throttled 4 times",
        "EC2 budget: DescribeNetworkInterfaces 0.5/s, 0 waiting, 0 waited, throttled 1 time",
    ]


def test_enis_as_json_have_the_promised_keys(tmp_path: Path, daemon: Daemon) -> None:
    primary, creating = answer(tmp_path, "enis")
    assert {name: primary[name] for name in ("id", "device_index", "primary", "state", "free", "assigned")} == {
        "id": "eni-0", "device_index": 0, "primary": True, "state": "ready", "free": 5, "assigned": 3,
    }  # fmt: skip
    assert primary["cooling"] == 2 and primary["foreign"] == 1 and creating["id"] == "" and creating["pending"] == 1


def test_pods_as_json_have_the_promised_keys(tmp_path: Path, daemon: Daemon) -> None:
    first, _ = answer(tmp_path, "pods")
    wanted = ("container_id", "ifname", "network", "ip", "eni", "pod", "namespace", "since")
    assert {name: first[name] for name in wanted} == {
        "container_id": "0" * 64, "ifname": "eth0", "network": "ipamd", "ip": "10.0.0.0", "eni": "eni-0",
        "pod": "web-0", "namespace": "shop", "since": "2027-01-15T08:00:00Z",
    }  # fmt: skip


def test_tables_have_one_line_for_each_and_say_what_is_wrong(tmp_path: Path, daemon: Daemon) -> None:
    socket_of = ("--socket", str(tmp_path / "s"))
    status = ipamctl("status", *socket_of).stdout
    assert "NOT READY: NOT_AUTHORIZED: no" in status
    assert "HELD BACK until 2027-01-15T08:01:00Z: new ENIs: Attach: no" in status
    heads, numbers = (" ".join(line.split()) for line in status.splitlines()[-2:])
    assert (heads, numbers) == ("FREE ASSIGNED COOLING RELEASING PENDING WAITING TOTAL", "5 3 2 0 1 4 10")
    enis = ipamctl("enis", *socket_of).stdout.splitlines()
    assert enis[1].startswith("eni-0 (primary)") and enis[2].startswith("(being created)")
    pods = ipamctl("pods", *socket_of).stdout.splitlines()
    assert [line.split()[1] for line in pods] == ["POD", "web-0", "web-1"]
    assert len({line.index(word) for line, word in zip(pods, ("POD", "web-0", "web-1"), strict=True)}) == 1


def test_a_node_without_pods_says_so(tmp_path: Path, daemon: Daemon) -> None:
    daemon.pods = 0
    assert ipamctl("pods", "--socket", tmp_path / "s").stdout == "none\n"
    assert answer(tmp_path, "pods") == []


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, daemon: Daemon) -> None:
    daemon.pods = 700  # more than a pipe holds
    process = subprocess.Popen(
        [sys.executable, "-m", "ipamd.ctl", "pods", "-o", "json", "--socket", str(tmp_path / "s")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1) == b"["
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(10) == 0


def test_without_a_daemon_one_line_says_where_it_was_looked_for(tmp_path: Path) -> None:
    done = ipamctl("status", "--socket", tmp_path / "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"ipamctl: no daemon at {tmp_path}/none: there is no such socket. "
        "Is it running? (systemctl status ipamd; another place: --socket)\n"
    )


def test_a_socket_that_a_dead_daemon_left_is_told_apart(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    done = ipamctl("enis", "--socket", tmp_path / "s")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nobody answers" in done.stderr


def test_what_the_daemon_refuses_is_passed_on(tmp_path: Path, daemon: Daemon) -> None:
    daemon.error = (grpc.StatusCode.INTERNAL, "out of order")
    done = ipamctl("status", "--socket", tmp_path / "s")
    assert (done.returncode, done.stderr) == (1, "ipamctl: out of order\n")


def test_help_names_commands_and_exit_codes() -> None:
    done = ipamctl("--help")
    assert done.returncode == 0
    for word in ("status", "enis", "pods", "--socket", "--output", "exit codes"):
        assert word in done.stdout
    assert "--socket" in ipamctl("pods", "--help").stdout


@pytest.mark.parametrize("words", [(), ("nodes",), ("pods", "-o", "yaml")])
def test_a_wrong_command_line_is_2(words: tuple[str, ...]) -> None:
    done = ipamctl(*words)
    assert done.returncode == 2 and "usage: ipamctl" in done.stderr


def capacity(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ipamd.ctl", "capacity", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_capacity_of_a_type() -> None:
    shown = capacity("m5.large")
    assert shown.returncode == 0 and shown.stdout.startswith("m5.large has addresses for 27 pods\n")
    assert "3 x (10 - 1)" in shown.stdout and "29   + 2" in shown.stdout
    found = json.loads(capacity("m5.large", "--prefixes", "-o", "json").stdout)
    assert (found["pods"], found["kubelet_max_pods"], found["prefixes"]) == (432, 434, True)
    assert "Nitro" in capacity("m5.large", "--prefixes").stdout


def test_capacity_of_all_types_that_fit() -> None:
    shown = json.loads(capacity("--list", "--fits", "110", "-o", "json").stdout)
    pods = [each["pods"] for each in shown]
    assert len(shown) > 100 and pods == sorted(pods) and pods[0] >= 110
    table = capacity("--list", "--fits", "110").stdout.splitlines()
    assert table[0].split() == ["TYPE", "ENIS", "ADDRESSES", "PER", "ENI", "PODS"] and len(table) == len(shown) + 1
    assert capacity("--list", "--fits", "99999").stdout == "none\n"


def test_capacity_of_nothing_known() -> None:
    refused = capacity("m5.larg")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "m5.larg: no instance type" in refused.stderr and "m5.large" in refused.stderr
    assert capacity().returncode == 2
    assert capacity("m5.large", "--list").returncode == 2
    assert capacity("m5.large", "--fits", "3").returncode == 2
