"""The configuration files of a worker's programs: containerd, kubelet, kube-proxy, ipamd."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import yaml

from tests.kubernetes.control_plane import DNS_SERVICE, DOMAIN

CA: Final = "/etc/kubernetes/pki/ca.crt"
CONTAINERD_CONFIG: Final = "/etc/containerd/config.toml"
CONTAINERD_SOCKET: Final = "/run/containerd/containerd.sock"
KUBELET_CONFIG: Final = "/etc/kubernetes/kubelet.yaml"
KUBELET_USER: Final = "/etc/kubernetes/kubelet.conf"
PROXY_CONFIG: Final = "/etc/kubernetes/kube-proxy.yaml"
PROXY_USER: Final = "/etc/kubernetes/kube-proxy.conf"

_CNI_PLUGINS: Final = Path("/usr/lib/cni")  # Debian's package containernetworking-plugins

# In version 2, which containerd 1.6 to 2.x read. restrict_oom_score_adj: root in a container may not lower a score.
_CONTAINERD: Final = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {image}
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""


def containerd(sandbox_image: str) -> str:
    return _CONTAINERD.format(image=json.dumps(sandbox_image))


def kubelet(cgroup: str, max_pods: int) -> str:
    """`cgroup` is the parent of its pods' control groups: two kubelets that share it remove each other's pods."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": CA},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": DOMAIN,
            "maxPods": max_pods,
            "resolvConf": "/etc/resolv.conf",
            "serializeImagePulls": False,
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",  # by default it makes one below /usr
            # How full the disk of the machine below is says nothing about the cluster.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": dict.fromkeys(("imagefs.available", "nodefs.available", "nodefs.inodesFree"), "0%"),
        }
    )


def kube_proxy(node: str, mode: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": PROXY_USER},
            "mode": mode,
            "hostnameOverride": node,
            # The kernel has one limit for all network namespaces, which only the first of them can set.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
    )


def place_cni_plugins(bin_dir: Path) -> None:
    """Copies of the machine's own, as a node image has them. Raises OSError."""
    bin_dir.mkdir(parents=True, exist_ok=True)
    for plugin in _CNI_PLUGINS.iterdir():
        shutil.copy2(plugin, bin_dir)
