"""The callers of `bench_allocate.py`, as a process of their own: a job on each line of standard input, and what
became of it on a line of standard output."""

from __future__ import annotations

import json
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from cni_shim import grpc_call, protobuf

PERSISTENT, PER_CALL = "persistent", "per call"
TIMEOUT = 10.0  # of a call

ALLOCATE, RELEASE = "/ipamd.v1.Ipam/Allocate", "/ipamd.v1.Ipam/Release"
CONFIG = b'{"cniVersion":"1.0.0","name":"ipamd","type":"ipamd-cni"}'

# Sends the request to the method and waits for the answer.
Call = Callable[[str, bytes], object]


@dataclass(frozen=True, slots=True)
class Job:
    """What one process of callers is to do. `start` is a time of `time.monotonic`."""

    socket: str
    callers: int
    connections: str
    rest: float
    start: float
    seconds: float


def serve_jobs() -> None:
    sys.setswitchinterval(0.0005)
    for line in sys.stdin:
        print(json.dumps(work(Job(**json.loads(line)))), flush=True)


def work(job: Job) -> dict[str, Any]:
    results: list[tuple[list[float], list[float]]] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call_until_the_end(job))
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run) for _ in range(job.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return {
        "allocate": [time for allocate, _ in results for time in allocate],
        "release": [time for _, release in results for time in release],
        "seconds": time.monotonic() - job.start,
    }


def call_until_the_end(job: Job) -> tuple[list[float], list[float]]:
    """One caller: the times of its calls, in seconds."""
    allocate: list[float] = []
    release: list[float] = []
    container = secrets.token_hex(28)
    with client(job) as call:
        pair(call, f"{container}first")
        time.sleep(max(0.0, job.start - time.monotonic()) + random.uniform(0, job.rest))
        while not release or time.monotonic() < job.start + job.seconds:
            first, second = pair(call, f"{container}{len(release):08x}")
            allocate.append(first)
            release.append(second)
            if job.rest:
                time.sleep(random.uniform(0, 2 * job.rest))
    return allocate, release


def pair(call: Call, container: str) -> tuple[float, float]:
    attachment = protobuf.cni_call(
        container.encode(),
        b"eth0",
        b"/run/netns/" + container.encode(),
        b"IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=" + container[-12:].encode(),
        b"/opt/cni/bin",
        CONFIG,
    )
    allocate, release = protobuf.allocate_request(attachment, int(TIMEOUT * 1000)), protobuf.request(attachment)
    begun = time.perf_counter()
    call(ALLOCATE, allocate)
    between = time.perf_counter()
    call(RELEASE, release)
    return between - begun, time.perf_counter() - between


@contextmanager
def client(job: Job) -> Iterator[Call]:
    if job.connections == PER_CALL:
        yield lambda method, request: grpc_call.unary(
            job.socket, method.encode(), request, time.monotonic() + TIMEOUT
        )
        return
    # Otherwise all channels of a process would share one connection.
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"unix:{job.socket}", own_connection) as channel:
        methods: dict[str, Callable[..., object]] = {
            method: channel.unary_unary(method) for method in (ALLOCATE, RELEASE)
        }
        yield lambda method, request: methods[method](request, timeout=TIMEOUT)


def hold(socket: str, count: int) -> None:
    """Allocate so many addresses, and keep them."""
    for _ in range(count):
        container = secrets.token_hex(32).encode()
        attachment = protobuf.cni_call(container, b"eth0", b"/run/netns/held", b"", b"/opt/cni/bin", CONFIG)
        request = protobuf.allocate_request(attachment, int(TIMEOUT * 1000))
        grpc_call.unary(socket, ALLOCATE.encode(), request, time.monotonic() + TIMEOUT)


if __name__ == "__main__":
    serve_jobs()
