"""`ipamctl events --record`: the coming and going of this node's pods as a trace (ipamd.workload), from events."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1.introspection_pb2_grpc import IntrospectionStub
from ipamd.ctl import times
from ipamd.ctl.command import DONE, Failed
from ipamd.ctl.connection import TIMEOUT, introspection
from ipamd.ctl.event import fields
from ipamd.ctl.following import Numbers, follow
from ipamd.workload.trace import Kind, TraceEvent, writing

_GRANTED = "attachment.granted"
_DELS = {"attachment.released", "attachment.collected"}
_REFUSED = "attachment.refused"

# Events have as many characters of a container's id.
_ID = 12


class Recorder:
    """Collects trace events from `began` on, in seconds since the epoch.

    An add stands where the pod asked, which is before the event that it was granted. As lines are in the order of
    time, it moves up to the line before it.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._last = 0.0
        self._present: set[str] = set()
        self.adds = self.dels = 0

    def present(self, attachments: Iterable[pb.AttachmentInfo], at: float) -> list[TraceEvent]:
        """The node has exactly these: at the beginning, and whenever events may have been missed."""
        now = {f"{a.network}/{a.container_id[:_ID]}/{a.ifname}": _pod(a) for a in attachments}
        gone = [self._line(at, "del", id) for id in sorted(self._present - now.keys())]
        return gone + [self._line(at, "add", id, now[id]) for id in sorted(now.keys() - self._present)]

    def happened(self, event: pb.Event) -> list[TraceEvent]:
        at = times.seconds(event.at)
        if at < self._began or event.name not in {_GRANTED, _REFUSED, *_DELS}:
            return []
        values = fields(event)
        id, pod = _identity(values), str(values.get("pod", ""))
        asked = at - float(values.get("waited_ms", 0)) / 1000
        if event.name in _DELS:
            return [self._line(at, "del", id)] if id in self._present else []
        if id in self._present:
            return []  # a repeated ADD of an attachment that has its address
        lines = [self._line(asked, "add", id, pod)]
        if event.name == _REFUSED:
            lines.append(self._line(at, "del", id))
        return lines

    def _line(self, at: float, kind: Kind, id: str, pod: str = "") -> TraceEvent:
        if kind == "add":
            self._present.add(id)
            self.adds += 1
        else:
            self._present.remove(id)
            self.dels += 1
        self._last = max(self._last, at - self._began)
        return TraceEvent(self._last, kind, id, pod)


def record(socket: Path, file: Path) -> int:
    """Until Ctrl-C or SIGTERM. Raises `Failed`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.time()
    recorder, numbers, lost = Recorder(began), Numbers(), 0
    with introspection(socket) as stub:  # check for a daemon before the file is made
        stub.GetNode(pb.GetNodeRequest(), timeout=TIMEOUT)
    try:
        with writing(file) as write:

            def look(stub: IntrospectionStub) -> None:
                held = stub.ListAttachments(pb.ListAttachmentsRequest(), timeout=TIMEOUT).attachments
                for line in recorder.present(held, time.time()):
                    write(line)

            try:
                for event in follow(socket, 1, connected=look):
                    if gap := numbers.lost_before(event.number):
                        lost += gap
                        with introspection(socket) as stub:
                            look(stub)
                    for line in recorder.happened(event):
                        write(line)
            except KeyboardInterrupt:
                pass
    except OSError as error:
        raise Failed(f"{file}: {error.strerror or error}") from None
    length = times.span(time.time() - began)
    print(f"{file}: {recorder.adds} adds and {recorder.dels} dels in {length}", file=sys.stderr)
    if lost:
        print(f"ipamctl: {lost} events lost: pods of a moment may be missing", file=sys.stderr)
    return DONE


def _identity(values: dict[str, Any]) -> str:
    """Of events that name their attachment by its parts, or by its whole key."""
    if "key" in values:
        network, container, ifname = str(values["key"]).rsplit("/", 2)
        return f"{network}/{container[:_ID]}/{ifname}"
    return f"{values.get('network', '')}/{values.get('container', '')}/{values.get('ifname', '')}"


def _pod(attachment: pb.AttachmentInfo) -> str:
    return f"{attachment.pod_namespace}/{attachment.pod_name}" if attachment.pod_name else ""
