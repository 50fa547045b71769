"""ipamctl as a process, against a daemon's socket with answers that the test wrote: what it shows."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import lists, status
from ipamd.ctl.attention import concerns
from ipamd.neighbours.kubelet import Kubelet
from tests.unit.ctl_daemon import SINCE, UNTIL, Daemon, answer, as_nobody, attachment, ill, ipamctl, serving, well


def test_status_as_json_has_the_promised_keys(at: Path, daemon: Daemon) -> None:
    daemon.node = ill()
    shown = answer(at, "status", code=3)
    assert {name: shown[name] for name in ("free", "assigned", "cooling", "pending", "waiting", "total")} == {
        "free": 5, "assigned": 3, "cooling": 2, "pending": 1, "waiting": 4, "total": 10,
    }  # fmt: skip
    promised = {"warm_ips": 5, "minimum_ips": 0, "max_pods": 27, "cooldown": 30.0, "allocate_wait": 30.0}
    assert promised.items() <= shown["targets"].items()
    assert (shown["ready"], shown["not_ready_reason"]) == (False, "NOT_AUTHORIZED: no")
    assert shown["backoffs"][0]["until"] == "2027-01-15T08:01:00Z"
    assert shown["subnets"][0] == {"id": "subnet-1", "available": 180, "seen": "2027-01-15T08:00:00Z"}
    assert shown["subnets"][3] == {"id": "subnet-4", "available": None, "seen": None}
    assert shown["denied"][0]["action"] == "ec2:DeleteNetworkInterface"
    assert shown["drained"] is None
    assert shown["troubles"] == [
        {
            "number": 7, "at": "2027-01-15T08:00:07.125Z", "level": "warning", "name": "attachment.refused",
            "fields": {"pod": "shop/web-9", "reason": "TIMEOUT", "waited_ms": 3.5},
        }
    ]  # fmt: skip


def test_status_as_json_has_the_whole_budget(at: Path, daemon: Daemon) -> None:
    daemon.node = ill()
    budget = {bucket["action"]: bucket for bucket in answer(at, "status", code=3)["budget"]}
    assert budget.keys() == {"AssignPrivateIpAddresses", "CreateNetworkInterface", "DescribeNetworkInterfaces"}
    assign = budget["AssignPrivateIpAddresses"]
    assert {name: assign[name] for name in ("rate", "tokens", "waiting", "throttled")} == {
        "rate": 0.4, "tokens": 0.25, "waiting": 3, "throttled": 4,
    }  # fmt: skip
    assert assign["waits"]["pod"] == {"waiting": 1, "count": 20, "delayed": 9, "total": 7.5, "longest": 2.125}


def screen(node: pb.Node, *waiting: pb.Waiting, width: int = 100) -> list[str]:
    return status.screen(node, (), waiting, UNTIL.seconds, width)


def test_a_node_that_is_well_says_so_in_a_few_lines() -> None:
    lines = screen(well())
    assert lines[0] == "i-1  m5.large  eu-1a  ipamd 1, up 1m00s  ready"
    assert "Nothing needs attention." in lines
    assert "pool     5 free, 3 assigned, 2 cooling, 0 releasing: 10 in all; 1 asked from EC2" in lines
    assert "subnet   subnet-1: 180 free addresses, as EC2 said 1m00s ago" in lines
    assert not any(word in line for line in lines for word in ("network", "EC2  ", "last warnings"))


def test_status_says_when_the_kubelet_takes_more_than_fit() -> None:
    node = well()
    assert concerns(node, (), UNTIL.seconds, Kubelet(29, "--max-pods")) == []
    [concern] = concerns(node, (), UNTIL.seconds, Kubelet(30, "maxPods in /etc/k"))
    assert concern == (
        "The kubelet takes 30 pods (maxPods in /etc/k), and there are addresses for 27: with 2 of the host's network "
        "those beyond 29 wait for others to end (set max-pods: ipamctl capacity m5.large --as kubelet)."
    )
    shown = status.data(node, (), UNTIL.seconds, Kubelet(30, "maxPods in /etc/k"))
    assert shown["kubelet"] == {"max_pods": 30, "origin": "maxPods in /etc/k", "fits": 29}
    assert status.data(node, (), UNTIL.seconds)["kubelet"] is None


def test_a_full_node_is_ready_and_says_that_it_is_full() -> None:
    node = well()
    node.would_refuse = "ENI_LIMIT: all 27 addresses are in use"
    lines = screen(node)
    assert lines[0].endswith("ready") and not lines[0].endswith("not ready")
    said = " ".join(line.strip() for line in lines[2:4]).strip()
    assert said == "! A further pod waits for one of the node's pods to end: ENI_LIMIT: all 27 addresses are in use"
    node.counts.assigned = 0
    assert screen(node)[2] == "! A further pod would be refused: ENI_LIMIT: all 27 addresses are in use"
    shown = status.data(node, (), UNTIL.seconds)
    assert (shown["ready"], shown["not_ready_reason"]) == (True, None)
    assert shown["would_refuse"] == node.would_refuse and shown["attention"]


def test_what_needs_attention_comes_first_and_in_words() -> None:
    node = ill()
    what, by = "rule 1501 lookup 1501", "systemd-network (pid 412)"
    node.host.CopyFrom(pb.HostNetwork(repairs=5, last_repair=SINCE, last_what=what, last_by=by, error="ip rule: no"))
    node.host.disputes.add(what=what, by=by, since=SINCE, last=UNTIL, repairs=4, delay=2)
    waiting = [
        pb.Waiting(container_id="c" * 64, since=UNTIL),
        pb.Waiting(pod_name="w", pod_namespace="n", since=SINCE),
    ]
    found = concerns(node, waiting, UNTIL.seconds - 20)
    assert found == [
        "Not ready: NOT_AUTHORIZED: no",
        "2 pods wait for an address, n/w for 40s (why: ipamctl explain pool).",
        "Held back for another 20s: new ENIs, ENI_LIMIT: Attach: no",
        "The node's role may not call ec2:DeleteNetworkInterface: ENIs are left behind.",
        "The node's network is not in order: ip rule: no",
        f"{by} changes {what} again and again: repaired 4 times in 40s (see ipamctl doctor).",
        "Subnet subnet-2 is full: no ENI here can get another address of it.",
        "Subnet subnet-3 is nearly full: 9 free, fewer than a new ENI can hold.",
    ]
    lines = screen(node, *waiting)
    assert lines[2:4] == [f"! {found[0]}", f"! {found[1].replace('40s', '1m00s')}"]
    assert [line for line in lines if line[:9].strip() in ("EC2", "network", "waiting")] == [
        "waiting  2, the longest for 1m00s",
        "EC2      AssignPrivateIpAddresses 0.4/s, 3 waiting, 12 waited (longest 2.1 s), throttled 4 times",
        f"network  5 repairs, the last 1m00s ago: {what}, changed by {by}",
    ]
    assert "         DescribeNetworkInterfaces 0.5/s, 0 waiting, 0 waited, throttled 1 time" in lines
    assert lines[-2:] == [
        "last warnings and errors",
        "   52s ago  attachment.refused  pod=shop/web-9 reason=TIMEOUT waited_ms=3.5",
    ]


def test_a_drained_node_says_so() -> None:
    node = well()
    node.drained.CopyFrom(SINCE)
    assert concerns(node, (), UNTIL.seconds)[0].startswith("Drained by an operator 1m00s ago")
    assert screen(node)[0].endswith("drained")


@pytest.mark.parametrize("width", [80, 200])
def test_the_screen_keeps_to_the_terminals_width(width: int) -> None:
    lines = screen(ill(), pb.Waiting(container_id="c" * 64, since=SINCE), width=width)
    assert max(map(len, lines[1:])) <= width


def test_what_comes_from_others_moves_no_cursor() -> None:
    node = ill()
    node.not_ready_reason = "\x1b[2Jgone\nnext"
    assert not any(c < " " for line in screen(node) for c in line)


@pytest.mark.parametrize(("name", "listing"), lists.LISTINGS.items())
def test_each_list_has_its_keys_as_json_yaml_and_columns(
    at: Path, daemon: Daemon, name: str, listing: lists.Listing
) -> None:
    daemon.waiting = [pb.Waiting(container_id="c" * 64, ifname="eth0", since=SINCE, deadline=UNTIL, request_id="r-1")]
    records = answer(at, name)
    assert records and all(tuple(record) == listing.keys for record in records)
    assert yaml.safe_load(ipamctl(name, "--socket", at, "-o", "yaml").stdout) == records
    table = ipamctl(name, "--socket", at, "--columns", ",".join(listing.keys)).stdout.splitlines()
    assert table[0].split() == [key.upper() for key in listing.keys] and len(table) == len(records) + 1
    refused = ipamctl(name, "--socket", at, "--columns", f"{listing.keys[0]},colour")
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr == f"ipamctl: --columns: no column colour; there are {', '.join(listing.keys)}\n"


def test_enis_as_json_have_the_promised_values(at: Path, daemon: Daemon) -> None:
    primary, creating = answer(at, "enis")
    assert {name: primary[name] for name in ("id", "device_index", "primary", "state", "free", "assigned")} == {
        "id": "eni-0", "device_index": 0, "primary": True, "state": "ready", "free": 5, "assigned": 3,
    }  # fmt: skip
    assert primary["cooling"] == 2 and primary["foreign"] == 1 and creating["id"] == "" and creating["pending"] == 1


def test_pods_as_json_have_the_promised_values(at: Path, daemon: Daemon) -> None:
    first, _ = answer(at, "pods")
    wanted = ("container_id", "ifname", "network", "ip", "eni", "pod", "namespace", "since")
    assert {name: first[name] for name in wanted} == {
        "container_id": "0" * 64, "ifname": "eth0", "network": "ipamd", "ip": "10.0.0.0", "eni": "eni-0",
        "pod": "web-0", "namespace": "shop", "since": "2027-01-15T08:00:00Z",
    }  # fmt: skip


def test_tables_have_one_line_for_each_and_ages_for_people(at: Path, daemon: Daemon) -> None:
    records = [{"ip": "10.0.0.1", "eni": "", "state": "free", "since": SINCE}]
    shown = lists.answer(lists.ADDRESSES, records, lists.ADDRESSES.shown, UNTIL.seconds + 132)
    assert shown.rows == (("10.0.0.1", "free", "3m12s", "-"),) and shown.names == ("10.0.0.1",)
    pods = ipamctl("pods", "--socket", at).stdout.splitlines()
    assert [line.split()[1] for line in pods] == ["POD", "web-0", "web-1"]
    assert len({line.index(word) for line, word in zip(pods, ("POD", "web-0", "web-1"), strict=True)}) == 1
    assert [line.split()[0] for line in ipamctl("addresses", "--socket", at).stdout.splitlines()] == [
        "IP", "10.0.0.9", "10.0.0.10", "10.0.0.100",
    ]  # fmt: skip


def test_names_are_one_a_line_for_xargs(at: Path, daemon: Daemon) -> None:
    daemon.attachments.append(pb.AttachmentInfo(container_id="f" * 64, ifname="eth0", ip="10.0.0.77", since=SINCE))
    assert ipamctl("pods", "--socket", at, "-o", "name").stdout == f"{'f' * 64}\nshop/web-0\nshop/web-1\n"
    assert ipamctl("enis", "--socket", at, "-o", "name").stdout == "eni-0\n"
    refused = ipamctl("status", "--socket", at, "-o", "name")
    assert refused.returncode == 2 and "lists something" in refused.stderr


def test_a_node_without_pods_says_so(at: Path, daemon: Daemon) -> None:
    daemon.attachments = []
    assert ipamctl("pods", "--socket", at).stdout == "none\n"
    assert answer(at, "pods") == []
    assert ipamctl("pods", "--socket", at, "-o", "name").stdout == ""


def test_a_reader_that_has_seen_enough_is_no_error(at: Path, daemon: Daemon) -> None:
    daemon.attachments = [attachment(n) for n in range(700)]  # more than a pipe holds
    process = subprocess.Popen(
        [sys.executable, "-m", "ipamd.ctl", "pods", "-o", "json", "--socket", at],
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


def test_a_socket_that_a_dead_daemon_left_is_told_apart(at: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(at))
    done = ipamctl("enis", "--socket", at)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nobody answers" in done.stderr


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE])
def test_what_the_daemon_refuses_is_passed_on(at: Path, daemon: Daemon, code: grpc.StatusCode) -> None:
    daemon.error = (code, "out of order")
    done = ipamctl("status", "--socket", at)
    assert (done.returncode, done.stderr) == (1, "ipamctl: out of order\n")


@pytest.fixture
def unprivileged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that anybody may look into, as /run/ipamd is."""
    directory = Path(f"/tmp/ctl-{os.getpid()}")
    directory.mkdir(mode=0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it away")
def test_reader_without_the_main_socket_uses_the_reading_socket(unprivileged: Path) -> None:
    main, read = unprivileged / "ipamd.sock", unprivileged / "read" / "ipamd.sock"
    read.parent.mkdir(mode=0o755)
    with serving(main) as changing:
        main.chmod(0o600)
        refused = as_nobody("pods", "--socket", main)
        assert refused.returncode == 1 and "permission denied: it belongs to root. Use sudo" in refused.stderr
        with serving(read) as reading:
            reading.attachments = []
            read.chmod(0o666)
            done = as_nobody("pods", "--socket", main)
            assert (done.stdout, done.returncode) == ("none\n", 0), done.stderr
            refused = as_nobody("undrain", "--socket", main)
            assert refused.returncode == 1 and "permission denied" in refused.stderr
            assert len(ipamctl("pods", "--socket", main).stdout.splitlines()) == 3, "root asks the main one"
        assert len(changing.requests) == 1


def test_help_names_commands_and_exit_codes() -> None:
    done = ipamctl("--help")
    assert done.returncode == 0
    for word in ("status", "enis", "pods", "--socket", "--output", "exit codes"):
        assert word in done.stdout
    assert "--socket" in ipamctl("pods", "--help").stdout


@pytest.mark.parametrize("words", [("nodes",), ("pods", "-o", "xml"), ("explain", "pod"), ("explain", "pool", "x")])
def test_a_wrong_command_line_is_2(words: tuple[str, ...]) -> None:
    done = ipamctl(*words)
    assert done.returncode == 2 and "ipamctl" in done.stderr and not done.stdout


def capacity(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ipamd.ctl", "capacity", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_capacity_tells_a_kubelet_what_to_say() -> None:
    assert capacity("m5.large", "--as", "kubelet").stdout == "maxPods: 29\n"
    assert capacity("m5.large", "--as", "kubelet-flag", "--host-network", "4").stdout == "--max-pods=31\n"
    shown = json.loads(capacity("m5.large", "--as", "kubelet", "--host-network", "0", "--output", "json").stdout)
    assert (shown["pods"], shown["kubelet_max_pods"]) == (27, 27)
    assert capacity("--list", "--as", "kubelet").returncode == 2


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
