"""What a runtime may send to the daemon, of any kind: refused, or understood and answered in words that it can
decode."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.message import DecodeError

from ipamd.api import cni, cni_answer, decodable
from ipamd.api.errors import shortened
from ipamd.api.plan import GATEWAY, plan
from ipamd.api.v1 import ipam_pb2
from ipamd.pool.model import Attachment
from ipamd.settings import HostSettings

CODES = {cni.INCOMPATIBLE_VERSION, cni.INVALID_ENVIRONMENT, cni.DECODING_FAILURE, cni.INVALID_CONFIG}
_HOST = HostSettings()


def from_runtime(data: bytes) -> None:
    """Container, interface, namespace, arguments and configuration, parted by a byte that none of them needs."""
    words = (data.split(b"\xfe", 4) + [b""] * 5)[:5]
    text = [word.decode("utf-8", "replace") for word in words[:4]]
    understood(ipam_pb2.CniCall(container_id=text[0], ifname=text[1], netns=text[2], args=text[3], config=words[4]))


def as_message(data: bytes) -> None:
    """The message itself."""
    try:
        call = ipam_pb2.CniCall.FromString(data)
    except DecodeError:
        return
    understood(call)


def understood(sent: ipam_pb2.CniCall) -> None:
    for verb in ("ADD", "CHECK", "DEL"):
        try:
            call = cni.understand(sent, None, verb)  # type: ignore[arg-type]
        except cni.InvalidCall as refused:
            assert refused.code in CODES and len(str(refused)) < 1100
            told = shortened(str(refused))
            assert told.isascii() and told.isprintable() and len(told) < 1100
            json.loads(cni_answer.error_object(refused.version, refused.code, str(refused), "reason=X"))
        else:
            _answered(call)
    try:
        _, valid = cni.understand_collection(sent)
        assert all(isinstance(word, str) for pair in valid for word in pair)
    except cni.InvalidCall as refused:
        assert refused.code in CODES


def _answered(call: cni.Call) -> None:
    owner = call.owner
    assert all(label.isprintable() and len(label) < 1600 for label in (owner.pod_name, owner.pod_namespace))
    assert len(call.key.container_id) <= 256 and call.key.ifname.isprintable()
    attachment = Attachment(call.key, "10.0.0.5", "eni-1", owner, 0.0)
    made = plan(attachment, _HOST, 0, 9001, owner.netns)
    result: dict[str, Any] = decodable.parse(cni_answer.result(call, made, attachment, GATEWAY))
    assert decodable.fault(result, decodable.RESULT, "result") == ""


_CONFIG = {
    "cniVersion": "1.1.0",
    "name": "n",
    "dns": {"nameservers": ["10.0.0.2"]},
    "runtimeConfig": {"mac": "02:00:00:00:00:01", "ips": ["10.0.0.5/24"], "dns": {"Servers": ["10.0.0.2"]}},
    "prevResult": {"interfaces": [{"name": "a", "mtu": 1}], "ips": [{"address": "10.0.0.9/8", "interface": 0}]},
    "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}],
}
_WORDS = (b"7d0f", b"eth0", b"/run/netns/x", b"K8S_POD_NAME=web-0;IP=10.0.0.5", json.dumps(_CONFIG).encode())
SEEDS = [
    b"\xfe".join(_WORDS),
    b"\xfe".join([*_WORDS[:4], b'{"cniVersion":"0.4.0","name":"n","prevResult":{"dns":{"search":[1e5,NaN]}}}']),
    b"\xfe".join([b"a", b"e\x1b[2J", b"/\xe2\x80\xae", b"A;=;K8S_POD_NAME=\x1b", b'{"cniVersion":"\xed\xa0\x80"}']),
]
MESSAGES = [ipam_pb2.CniCall(container_id="a", ifname="b", netns="/c", config=_WORDS[4]).SerializeToString()]
