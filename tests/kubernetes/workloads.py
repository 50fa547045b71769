"""Manifests of the scenarios' workloads, as few lines as the API takes."""

from __future__ import annotations

import json
from typing import Any

from tests.kubernetes import images

BUSYBOX = images.reference("busybox")
FOREVER = ["sleep", "2147483647"]


def pod_spec(
    node: str = "", *, image: str = BUSYBOX, command: list[str] | None = None, **more: Any
) -> dict[str, Any]:
    """`node`: the only one that it may run on; it is placed by the scheduler."""
    selector = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    container: dict[str, Any] = {"name": "main", "image": image, "command": command or FOREVER}
    for key in ("ports", "readinessProbe"):
        if key in more:
            container[key] = more.pop(key)
    return {"terminationGracePeriodSeconds": 1, "containers": [container], **selector, **more}


def _object(kind: str, name: str, namespace: str, spec: dict[str, Any], version: str = "apps/v1") -> str:
    metadata = {"name": name, "namespace": namespace}
    return json.dumps({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})


def _template(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"labels": {"app": name}}, "spec": spec}


def deployment(name: str, namespace: str, replicas: int, spec: dict[str, Any], **more: Any) -> str:
    selector = {"matchLabels": {"app": name}}
    body = {"replicas": replicas, "selector": selector, "template": _template(name, spec), **more}
    return _object("Deployment", name, namespace, body)


def stateful_set(name: str, namespace: str, replicas: int, spec: dict[str, Any]) -> str:
    selector = {"matchLabels": {"app": name}}
    body = {"replicas": replicas, "selector": selector, "serviceName": name, "template": _template(name, spec)}
    return _object("StatefulSet", name, namespace, body)


def job(name: str, namespace: str, completions: int, parallelism: int, spec: dict[str, Any]) -> str:
    body = {
        "completions": completions,
        "parallelism": parallelism,
        "backoffLimit": 0,
        "template": _template(name, {**spec, "restartPolicy": "Never"}),
    }
    return _object("Job", name, namespace, body, "batch/v1")


def pod(name: str, namespace: str, spec: dict[str, Any]) -> str:
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
