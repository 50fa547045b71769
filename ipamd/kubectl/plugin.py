#!/usr/bin/env python3
"""`kubectl ipamd`: runs ipamctl in the pod of ipamd's DaemonSet on the right node, or on all nodes for a table.

All access is kubectl's own: it finds pods with `kubectl get` and reaches daemons with `kubectl exec`. On a node that
runs ipamd as a service of the host there is no such pod, and the message says what to do instead.

Exit codes: as ipamctl's. 0 done, 1 not done (a node can't be reached, kubectl refuses), 2 wrong command line,
3 done, and it calls for attention.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

DONE, NOT_DONE, USAGE, ATTENTION = 0, 1, 2, 3

# deploy/kubernetes/ipamd.yaml.
LABEL = "app.kubernetes.io/name=ipamd"
CONTAINER = "ipamd"

# Of kubectl's own flags those that say which cluster, and as whom; each takes a value.
PASSED_ON = ("context", "kubeconfig", "cluster", "user", "as", "as-group", "server", "token", "request-timeout")

AT_ONCE = 16  # nodes that are asked at the same time
PATIENCE = 30.0  # seconds for one node's answer to a table

_NO_DAEMON_SET = f"""no pod of ipamd's DaemonSet is in this cluster (kubectl get pods -A -l {LABEL} finds none)
where ipamd is installed on the hosts, ask it there:
  ssh NODE ipamctl status
  kubectl debug node/NODE -it --profile=sysadmin --image=busybox -- chroot /host ipamctl status
the DaemonSet is deploy/kubernetes/ipamd.yaml, for nodes with the label ipamd.io/node"""

_EPILOG = """examples:
  kubectl ipamd nodes                     all nodes: are they well, how many addresses are free?
  kubectl ipamd status ip-10-0-0-12       one node on one screen
  kubectl ipamd explain shop/web-0        why has this pod no address?
  kubectl ipamd whois 10.0.3.17           who has this address, and who had it before?
  kubectl ipamd top ip-10-0-0-12          the same as status, live
  kubectl ipamd on ip-10-0-0-12 events -f any command of ipamctl on that node

exit codes:
  0  done
  1  not done: a node can't be reached, kubectl refuses, no such pod or address
  2  wrong command line
  3  done, and it calls for attention"""


class Failed(Exception):
    """What was asked for can't be done; the message says why and what to do, one line or more."""

    def __init__(self, message: str, code: int = NOT_DONE) -> None:
        super().__init__(message)
        self.code = code


class NoPod(Failed):
    """The node has no pod of the DaemonSet, or there is no such node."""

    def __init__(self, node: str, words: Iterable[str]) -> None:
        command = " ".join(["ipamctl", *words])
        super().__init__(
            f"no pod of ipamd's DaemonSet is on node {node} (kubectl get pods -A -o wide -l {LABEL})\n"
            "where ipamd is installed on the host, ask it there:\n"
            f"  ssh {node} {command}\n"
            f"  kubectl debug node/{node} -it --profile=sysadmin --image=busybox -- chroot /host {command}"
        )


@dataclass(frozen=True)
class Daemon:
    """The pod of one node's daemon. `trouble`: what its container waits for or why it ended, empty when it runs."""

    node: str
    namespace: str
    pod: str
    trouble: str


@dataclass(frozen=True)
class Answer:
    """What a daemon said in JSON, or why it said nothing."""

    data: Any = None
    error: str = ""


@dataclass(frozen=True)
class Kubectl:
    """`flags` go with each call."""

    flags: tuple[str, ...] = ()

    def get(self, *words: str) -> Any:
        """The objects, as JSON. Raises `Failed`."""
        done = self.run(["get", *words, "-o", "json"])
        if done.returncode:
            raise Failed(f"kubectl get {' '.join(words)}: {last_line(done.stderr)}")
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise Failed(f"kubectl get {' '.join(words)}: its answer is no JSON") from None

    def run(self, words: Sequence[str], timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """With its output. Raises `Failed`, subprocess.TimeoutExpired."""
        command = ["kubectl", *self.flags, *words]
        try:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
            )
        except OSError as error:
            raise _no_kubectl(error) from None

    def show(self, words: Sequence[str]) -> int:
        """Its exit code; input and output are ours. Raises `Failed`."""
        sys.stdout.flush()
        try:
            return subprocess.run(["kubectl", *self.flags, *words], check=False).returncode
        except OSError as error:
            raise _no_kubectl(error) from None


def _no_kubectl(error: OSError) -> Failed:
    return Failed(f"kubectl can't be run: {error.strerror}; is it on the PATH?")


def said(errors: str) -> list[str]:
    """Without what kubectl says of each command that ends with another code than 0."""
    return [line for line in errors.splitlines() if not line.startswith("command terminated with exit code")]


def last_line(errors: str) -> str:
    return next(reversed(said(errors)), "no reason given").strip()


# The daemons


def daemons(kubectl: Kubectl) -> dict[str, Daemon]:
    """By node. Of two pods on one node, one is on its way out. Raises `Failed` when there are none."""
    found: dict[str, Daemon] = {}
    for pod in kubectl.get("pods", "--all-namespaces", "-l", LABEL)["items"]:
        node = pod["spec"].get("nodeName")
        owners = {owner["kind"] for owner in pod["metadata"].get("ownerReferences", ())}
        if node is None or "DaemonSet" not in owners:
            continue
        if node not in found or "deletionTimestamp" not in pod["metadata"]:
            found[node] = Daemon(node, pod["metadata"]["namespace"], pod["metadata"]["name"], _trouble(pod))
    if not found:
        raise Failed(_NO_DAEMON_SET)
    return dict(sorted(found.items()))


def _trouble(pod: Any) -> str:
    status = pod.get("status", {})
    for each in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        state = each.get("state", {})
        for name in ("waiting", "terminated"):
            if (reason := state.get(name, {}).get("reason", "")) not in ("", "Completed", "PodInitializing"):
                return f"container {each['name']}: {reason}"
    phase = status.get("phase", "Unknown")
    return "" if phase == "Running" else f"the pod is {phase}"


def daemon_on(kubectl: Kubectl, node: str, words: Iterable[str]) -> Daemon:
    """Raises `Failed`."""
    found = daemons(kubectl).get(node)
    if found is None:
        raise NoPod(node, words)
    return found


def inside(daemon: Daemon, words: Iterable[str], terminal: bool = False) -> list[str]:
    """kubectl's words to run ipamctl there."""
    where = ["-n", daemon.namespace, daemon.pod, "-c", CONTAINER]
    return ["exec", *(["-it"] if terminal else []), *where, "--", "ipamctl", *words]


def ask(kubectl: Kubectl, daemon: Daemon, *words: str) -> Answer:
    """One daemon's answer to a command of ipamctl that ends with 0 or 3."""
    try:
        done = kubectl.run(inside(daemon, [*words, "-o", "json"]), PATIENCE)
        if done.returncode in (DONE, ATTENTION):
            return Answer(json.loads(done.stdout))
        error = last_line(done.stderr)
    except subprocess.TimeoutExpired:
        error = f"no answer within {PATIENCE:g} s"
    except ValueError:
        error = "its answer is no JSON"
    return Answer(error=f"{daemon.trouble}: {error}" if daemon.trouble else error)


def ask_all(kubectl: Kubectl, asked: Iterable[Daemon], *words: str) -> dict[str, Answer]:
    asked = list(asked)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(lambda daemon: ask(kubectl, daemon, *words), asked)
        return {daemon.node: answer for daemon, answer in zip(asked, answers, strict=True)}


def show(kubectl: Kubectl, daemon: Daemon, words: Sequence[str]) -> int:
    """Show what ipamctl says there. Its exit code. Raises `Failed`."""
    done = kubectl.run(inside(daemon, words))
    sys.stdout.write(done.stdout)
    for line in said(done.stderr):
        print(_printable(line), file=sys.stderr)
    # kubectl ends with 1 as well when it does not reach the pod.
    if done.returncode == NOT_DONE and kubectl.run(inside(daemon, ["--version"])).returncode:
        raise Failed(_unreachable(daemon))
    return done.returncode


def _unreachable(daemon: Daemon) -> str:
    pod = f"-n {daemon.namespace} {daemon.pod}"
    return (
        f"node {daemon.node}: ipamd's pod {daemon.namespace}/{daemon.pod} can't be asked"
        + (f" ({daemon.trouble})" if daemon.trouble else "")
        + f"\nlook at it: kubectl describe pod {pod}; kubectl logs {pod}; kubectl get node {daemon.node}"
    )


# Commands


def nodes(kubectl: Kubectl, args: argparse.Namespace) -> int:
    there = daemons(kubectl)
    without = sorted({node["metadata"]["name"] for node in kubectl.get("nodes")["items"]} - there.keys())
    answers = ask_all(kubectl, there.values(), "status")
    if args.output == "json":
        rows: list[dict[str, Any]] = [
            {"node": node, "pod": f"{there[node].namespace}/{there[node].pod}", "status": answer.data}
            | {"error": answer.error or None}
            for node, answer in answers.items()
        ]
        print(json.dumps(rows + [{"node": n, "pod": None, "status": None, "error": None} for n in without], indent=2))
    else:
        print("\n".join(_screen(answers, without)))
    if any(answer.error for answer in answers.values()):
        return NOT_DONE
    return ATTENTION if any(answer.data["attention"] for answer in answers.values()) else DONE


def _screen(answers: dict[str, Answer], without: list[str]) -> list[str]:
    table = [("NODE", "STATE", "FREE", "ASSIGNED", "COOLING", "WAITING", "TOTAL", "VERSION")]
    notes = []
    for node, answer in answers.items():
        if answer.error:
            table.append((node, "unreachable", *"------"))
            notes.append(f"! {node}: {answer.error}")
            continue
        found = answer.data
        counts = (str(found[name]) for name in ("free", "assigned", "cooling", "waiting", "total"))
        table.append((node, _state(found), *counts, found["version"]))
        notes += [f"! {node}: {sentence}" for sentence in found["attention"]]
    table += [(node, "no pod", *"------") for node in without]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if without:
        notes.append(
            "no pod: no daemon of the DaemonSet is on that node; if ipamd is installed on the host, ask it by ssh or "
            "kubectl debug node/NODE"
        )
    return [*lines, *([""] if notes else []), *map(_printable, notes)]


def _state(found: Any) -> str:
    if found["start"] is not None:
        return "starting"
    if found["drained"] is not None:
        return "drained"
    return "ready" if found["ready"] else "not ready"


def _printable(text: str) -> str:
    """Without what could move the cursor: names and messages come from others."""
    return "".join(c if c.isprintable() else "?" for c in text)


def status(kubectl: Kubectl, args: argparse.Namespace) -> int:
    if args.node is None:
        return nodes(kubectl, args)
    words = ["status", *_format(args)]
    return show(kubectl, daemon_on(kubectl, args.node, words), words)


def top(kubectl: Kubectl, args: argparse.Namespace) -> int:
    return on(kubectl, argparse.Namespace(node=args.node, words=["top"]))


def on(kubectl: Kubectl, args: argparse.Namespace) -> int:
    """With our own input and output: some commands go on until Ctrl-C."""
    words = args.words or ["--help"]
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return kubectl.show(inside(daemon_on(kubectl, args.node, words), words, terminal))


def explain(kubectl: Kubectl, args: argparse.Namespace) -> int:
    subject = args.subject
    if subject == "pool":
        if args.name is None:
            raise Failed("name the node: kubectl ipamd explain pool NODE", USAGE)
        words = ["explain", "pool", *_format(args)]
        return show(kubectl, daemon_on(kubectl, args.name, words), words)
    if subject == "pod":
        if args.name is None:
            raise Failed("say which pod: kubectl ipamd explain pod NAMESPACE/NAME", USAGE)
        subject = args.name
    elif args.name is not None:
        raise Failed(f"{subject} {args.name}: write kubectl ipamd explain pod NAMESPACE/NAME", USAGE)
    return _explain_pod(kubectl, subject, args)


def _explain_pod(kubectl: Kubectl, subject: str, args: argparse.Namespace) -> int:
    namespace, _, name = subject.rpartition("/")
    namespace = namespace or args.namespace
    pod = kubectl.get("pod", name, *(["-n", namespace] if namespace else []))
    full = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    node = pod["spec"].get("nodeName")
    if node is None:
        raise Failed(
            f"pod {full} is on no node yet, so no network was asked for\n"
            f"why: kubectl describe pod -n {pod['metadata']['namespace']} {name}"
        )
    if pod["spec"].get("hostNetwork"):
        raise Failed(f"pod {full} is on its node's own network (hostNetwork): its address is that of {node}")
    words = ["explain", "pod", full, *_format(args)]
    return show(kubectl, daemon_on(kubectl, node, words), words)


def whois(kubectl: Kubectl, args: argparse.Namespace) -> int:
    """The node whose pool has it explains it; Kubernetes does not know addresses that cool or are free."""
    address = str(args.address)
    there = daemons(kubectl)
    answers = ask_all(kubectl, there.values(), "addresses")
    holders = [n for n, answer in answers.items() if any(each["ip"] == address for each in answer.data or ())]
    silent = [f"{node}: {answer.error}" for node, answer in answers.items() if answer.error]
    code = DONE
    for node in holders:
        if args.output == "table":
            print(f"node {node}")
        code = max(code, show(kubectl, there[node], ["explain", address, *_format(args)]))
    if holders:
        return code
    raise _held_by_no_pool(kubectl, address, len(there), silent)


def _held_by_no_pool(kubectl: Kubectl, address: str, there: int, silent: list[str]) -> Failed:
    for node in kubectl.get("nodes")["items"]:
        if any(each["address"] == address for each in node["status"].get("addresses", ())):
            return Failed(f"{address} is node {node['metadata']['name']}'s own address, not one of its pool")
    lines = [
        f"no daemon of the DaemonSet has {address} ({there - len(silent)} of {there} asked); another service of the "
        f"VPC may: aws ec2 describe-network-interfaces --filters Name=addresses.private-ip-address,Values={address}",
        *(["could not ask:"] if silent else []),
        *(f"  {each}" for each in silent),
    ]
    return Failed("\n".join(lines))


def _format(args: argparse.Namespace) -> list[str]:
    return [] if args.output == "table" else ["-o", args.output]


# The command line


def make_parser() -> argparse.ArgumentParser:
    unset = argparse.SUPPRESS
    common = argparse.ArgumentParser(add_help=False)
    ours = common.add_argument_group("kubectl's own")
    for name in PASSED_ON:
        ours.add_argument(f"--{name}", default=unset, metavar="VALUE")
    ours.add_argument(
        "-n", "--namespace", default=argparse.SUPPRESS, metavar="NAMESPACE", help="of the pod to explain"
    )
    common.add_argument("-o", "--output", choices=("table", "json"), default=unset, help="(default: table)")
    parser = argparse.ArgumentParser(
        prog="kubectl ipamd",
        description="Ask the address pool daemons of the cluster's nodes, each in the DaemonSet's pod on its node.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[common])
        command.set_defaults(run=run)
        return command

    add("nodes", "a table of all nodes, and what needs attention on them", nodes)
    one = add("status", "one node on one screen; without a node, as nodes", status)
    one.add_argument("node", nargs="?", metavar="NODE")
    why = add("explain", "why a pod waits or what address it has, or why a node's pool does not grow", explain)
    why.add_argument("subject", metavar="pod|pool|NAMESPACE/NAME", help="a pod, or the pool of a node")
    why.add_argument("name", nargs="?", metavar="NAME", help="NAMESPACE/NAME after the word pod, NODE after pool")
    who = add("whois", "which node has an address, which pod has it, and who had it before", whois)
    who.add_argument("address", type=ip_address, metavar="ADDRESS")
    add("top", "one node, live", top).add_argument("node", metavar="NODE")
    any_command = add("on", "any command of ipamctl on a node", on)
    any_command.add_argument("node", metavar="NODE")
    any_command.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="ipamctl's words")
    return parser


def _flags(args: argparse.Namespace) -> tuple[str, ...]:
    given = {name: getattr(args, name.replace("-", "_"), None) for name in PASSED_ON}
    return tuple(f"--{name}={value}" for name, value in given.items() if value is not None)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    start = argparse.Namespace(namespace="", output="table")
    args = parser.parse_args(words, start)
    if args.command is None:
        parser.print_help()
        return USAGE
    try:
        code: int = args.run(Kubectl(_flags(args)), args)
        sys.stdout.flush()
        return code
    except Failed as failure:
        lines = map(_printable, str(failure).splitlines())
        print(*(f"kubectl ipamd: {line}" for line in lines), sep="\n", file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer goes nowhere
        return DONE


if __name__ == "__main__":
    sys.exit(main())
