"""The configuration of a containerd that shares the machine with others, 1.6 to 2.x."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from ipamd.sim import netns as namespaces
from ipamd.sim.runtimes import RuntimeFailure, image

METRICS_PORT: Final = 1338  # in the node's namespace, where nobody else listens

# restrict_oom_score_adj: root in a container may not lower a score (CAP_SYS_RESOURCE).
# netns_mounts_under_state_dir: else the pods' namespaces lie in /run/netns.
_CONFIG: Final = """\
version = 2
root = {root}
state = {state}
[grpc]
  address = {socket}
[ttrpc]
  address = {ttrpc}
[metrics]
  address = "127.0.0.1:{metrics_port}"
[plugins."io.containerd.internal.v1.opt"]
  path = {opt}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {image}
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {bin_dir}
    conf_dir = {conf_dir}
    max_conf_num = {networks}
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = {runc}
"""

# The same for containerd 2. NRI has one socket for the whole machine.
_CONFIG_2: Final = """\
version = 3
root = {root}
state = {state}
[grpc]
  address = {socket}
[ttrpc]
  address = {ttrpc}
[metrics]
  address = "127.0.0.1:{metrics_port}"
[plugins."io.containerd.internal.v1.opt"]
  path = {opt}
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = {image}
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [{bin_dir}]
    conf_dir = {conf_dir}
    max_conf_num = {networks}
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      Root = {runc}
"""
_FIRST_RELEASE: Final = re.compile(r" v?(\d+)\.")  # in what `containerd --version` prints


async def is_modern(executable: str) -> bool:
    """Whether it is containerd 2 or later. Raises `RuntimeFailure`."""
    try:
        text = await namespaces.command(executable, "--version")
    except namespaces.CommandError as error:
        raise RuntimeFailure(str(error)) from None
    found = _FIRST_RELEASE.search(text)
    if found is None:
        raise RuntimeFailure(f"containerd --version printed {text!r}, which names no version")
    return int(found[1]) >= 2


def text(directory: Path, socket: Path, bin_dir: Path, conf_dir: Path, networks: int, *, modern: bool) -> str:
    strings = {
        "root": directory / "root",
        "state": directory / "state",
        "socket": socket,
        "ttrpc": directory / "t.sock",
        "opt": directory / "opt",
        "image": image.REFERENCE,
        "bin_dir": bin_dir,
        "conf_dir": conf_dir,
        "runc": directory / "runc",
    }
    quoted = {name: json.dumps(str(value)) for name, value in strings.items()}
    template = _CONFIG_2 if modern else _CONFIG
    return template.format(metrics_port=METRICS_PORT, networks=networks, **quoted)
