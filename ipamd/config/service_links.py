"""Variables that Kubernetes puts into pods for each Service of their namespace: no settings, whatever they look like.

A Service `ipamd` gives IPAMD_SERVICE_HOST and IPAMD_PORT, a Service `ipamd-metrics` IPAMD_METRICS_PORT. Names and
values: k8s.io/kubernetes, pkg/kubelet/envvars/envvars.go. Only what has both, the form of the name and that of the
value, counts as one: any other variable of ours is a mistake that somebody wants to hear of.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from ipamd.settings import ENVIRONMENT_PREFIX


def _address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text[:6]) < 65536


def _url(text: str) -> bool:
    found = re.fullmatch(r"(?:tcp|udp|sctp)://(.+):([0-9]+)", text)
    return found is not None and _address(found[1]) and _port(found[2])


def _protocol(text: str) -> bool:
    return text in ("tcp", "udp", "sctp")


# `IPAMD` is the whole name of a Service, or its first word.
_SERVICE = ENVIRONMENT_PREFIX.rstrip("_") + r"(?:_[A-Z0-9_]+)?"
_OF_A_PORT = _SERVICE + r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)"
_FORMS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = tuple(
    (re.compile(name), value)
    for name, value in (
        (_SERVICE + "_SERVICE_HOST", _address),
        (_SERVICE + "_SERVICE_PORT(?:_[A-Z0-9_]+)?", _port),
        (_SERVICE + "_PORT", _url),
        (_OF_A_PORT, _url),
        (_OF_A_PORT + "_PROTO", _protocol),
        (_OF_A_PORT + "_PORT", _port),
        (_OF_A_PORT + "_ADDR", _address),
    )
)


def is_service_link(name: str, value: str) -> bool:
    return any(form.fullmatch(name) is not None and fits(value) for form, fits in _FORMS)
