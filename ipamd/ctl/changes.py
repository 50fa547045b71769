"""`ipamctl release`, `collect`, `drain`, `undrain`: changes by hand, through root's socket."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ipamd.api.v1 import administration_pb2 as admin
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import times
from ipamd.ctl.command import DONE, NOT_DONE, USAGE, Failed, manual
from ipamd.ctl.connection import LONG_TIMEOUT, TIMEOUT, administration
from ipamd.ctl.output import Answer, aligned, printable, show

# A shorter prefix of a container id counts as a typing error.
_SHORTEST_ID = 4


def set_up(parser: argparse.ArgumentParser) -> None:
    name = parser.prog.split()[-1]
    if name == "release":
        parser.add_argument(
            "attachment", metavar="ATTACHMENT", help="address, namespace/pod, pod, or the beginning of a container id"
        )
    if name in ("release", "collect"):
        parser.add_argument("-y", "--yes", action="store_true", help="don't ask")
    manual(parser, _PURPOSES[name], examples=_EXAMPLES[name], codes=_CODES.get(name))
    parser.set_defaults(run=_RUN[name])


def _release(args: argparse.Namespace) -> int:
    with administration(args.socket) as (introspection, administrate):
        held = introspection.ListAttachments(pb.ListAttachmentsRequest(), timeout=TIMEOUT).attachments
        attachment = chosen(held, args.attachment)
        if not args.yes:
            print(*consequences(attachment), sep="\n", file=sys.stderr)
            if not _confirmed(f"Release {attachment.ip} of {_who(attachment)}?"):
                return NOT_DONE
        released = administrate.ReleaseAttachment(
            admin.ReleaseAttachmentRequest(
                network=attachment.network, container_id=attachment.container_id, ifname=attachment.ifname
            ),
            timeout=LONG_TIMEOUT,
        )
    show(Answer(_data(released), lines=(f"released {_line(released)}",), names=(released.ip,)), args.output)
    return DONE


def _collect(args: argparse.Namespace) -> int:
    with administration(args.socket) as (_, administrate):
        if not args.yes:
            look = admin.CollectVanishedRequest(only_look=True)
            candidates = administrate.CollectVanished(look, timeout=LONG_TIMEOUT).released
            if not candidates:
                _show_collected(candidates, args.output)
                return DONE
            print("Their network namespaces and interfaces are both gone:", file=sys.stderr)
            print(*(f"  {_line(each)}" for each in candidates), sep="\n", file=sys.stderr)
            if not _confirmed(f"Release {len(candidates)}?"):
                return NOT_DONE
        released = administrate.CollectVanished(admin.CollectVanishedRequest(), timeout=LONG_TIMEOUT).released
    _show_collected(released, args.output)
    return DONE


def _show_collected(released: Sequence[admin.ReleasedAttachment], output: str) -> None:
    lines = tuple(f"released {_line(each)}" for each in released) or (
        "Nothing to release: every attachment has its namespace or its interface, or is young.",
    )
    show(Answer([_data(each) for each in released], lines=lines, names=tuple(each.ip for each in released)), output)


def _drain(args: argparse.Namespace) -> int:
    with administration(args.socket) as (_, administrate):
        reply = administrate.Drain(admin.DrainRequest(), timeout=LONG_TIMEOUT)
    left = reply.attachments
    lines = (
        f"Drained since {times.iso(reply.since)}: no pod gets an address on this node until ipamctl undrain.",
        f"{left} attachment{'s' * (left != 1)} still hold{'s' * (left == 1)} an address.",
    )
    show(Answer({"since": times.iso(reply.since), "attachments": left}, lines=lines), args.output)
    return DONE


def _undrain(args: argparse.Namespace) -> int:
    with administration(args.socket) as (_, administrate):
        administrate.Undrain(admin.UndrainRequest(), timeout=LONG_TIMEOUT)
    show(Answer({"since": None}, lines=("Pods get addresses on this node again.",)), args.output)
    return DONE


def chosen(held: Sequence[pb.AttachmentInfo], word: str) -> pb.AttachmentInfo:
    """The attachment that `word` names. Raises `Failed` if none or several fit."""
    matches = [a for a in held if word == a.ip]
    matches = matches or [a for a in held if word in (f"{a.pod_namespace}/{a.pod_name}", a.container_id)]
    matches = matches or [a for a in held if word == a.pod_name]
    if not matches and len(word) >= _SHORTEST_ID:
        matches = [a for a in held if a.container_id.startswith(word)]
    if not matches:
        raise Failed(f"{printable(word)}: no attachment has this address, pod or container id (see ipamctl pods)")
    if len(matches) > 1:
        rows = [(_pod(a), a.container_id[:12], a.ifname, a.ip) for a in sorted(matches, key=lambda a: a.ip)]
        lines = [f"  {line}" for line in aligned(rows)]
        raise Failed("\n".join([f"{printable(word)} means several; name one by its address:", *lines]))
    return matches[0]


def consequences(attachment: pb.AttachmentInfo) -> list[str]:
    """Lines that say what releasing it does."""
    lines = [
        f"{printable(_who(attachment))} holds {attachment.ip} on {attachment.eni}, interface {attachment.ifname}.",
    ]
    if not attachment.netns:
        lines.append("Where its network namespace is, is not known: it may still run.")
    elif Path(attachment.netns).exists():
        lines.append(f"Its network namespace {printable(attachment.netns)} is still there: IT PROBABLY RUNS, and")
        lines.append("loses its network at once. Deleting the pod by its orchestrator is the better way.")
    else:
        lines.append(f"Its network namespace {printable(attachment.netns)} is gone.")
    lines.append("The address cools down and is then given to another pod.")
    return lines


def _confirmed(question: str) -> bool:
    """Raises `Failed` if there is no terminal to ask at."""
    if not sys.stdin.isatty():
        raise Failed("nobody can be asked here: it needs a terminal, or --yes", USAGE)
    print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was changed", file=sys.stderr)
    return False


def _pod(attachment: pb.AttachmentInfo | admin.ReleasedAttachment) -> str:
    return f"{attachment.pod_namespace}/{attachment.pod_name}" if attachment.pod_name else "-"


def _who(attachment: pb.AttachmentInfo | admin.ReleasedAttachment) -> str:
    container = f"container {attachment.container_id[:12]}"
    return f"pod {_pod(attachment)} ({container})" if attachment.pod_name else container


def _line(released: admin.ReleasedAttachment) -> str:
    return printable(f"{released.ip} of {_who(released)}")


def _data(released: admin.ReleasedAttachment) -> dict[str, str]:
    return {
        "network": released.network,
        "container_id": released.container_id,
        "ifname": released.ifname,
        "ip": released.ip,
        "pod": released.pod_name,
        "namespace": released.pod_namespace,
    }


_RUN = {"release": _release, "collect": _collect, "drain": _drain, "undrain": _undrain}
_ASKS = "It shows what it will do and asks; --yes is for scripts."
_PURPOSES = {
    "release": "Its interface on the host goes, too, whether or not its container still runs: for what a runtime "
    f"forgot to delete. {_ASKS}",
    "collect": "The daemon does so by itself after two looks a minute apart; this is now. What has left its network "
    f"namespace or its interface behind is never touched, nor what is younger than a minute. {_ASKS}",
    "drain": "Before a node is taken away. Running pods keep their addresses, what is free goes back to EC2. It "
    "lasts across restarts of the daemon, until ipamctl undrain. Draining twice changes nothing.",
    "undrain": "It ends ipamctl drain. On a node that is not drained it changes nothing.",
}
_EXAMPLES = {
    "release": {
        "ipamctl release 10.0.0.17": "by address",
        "ipamctl release shop/web-0": "by pod; where several match, they are listed",
        "ipamctl release --yes 3f9ab2c0": "by the beginning of the container's id, without a question",
    },
    "collect": {"ipamctl collect": "show them and ask", "ipamctl collect --yes -o json": "for scripts"},
    "drain": {"ipamctl drain && kubectl drain NODE": "the pool first, then the pods"},
    "undrain": {"ipamctl undrain": ""},
}
_CODES = {
    "release": {NOT_DONE: "no such attachment, or several; answered no; the daemon is not there or refused"},
    "collect": {NOT_DONE: "answered no; the daemon is not there or refused"},
}
