"""Puts the parts of the shell together around one pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ipamd.cloud.port import Cloud
from ipamd.cloud.vpc import Vpc
from ipamd.host import HostNetwork, Reconciler
from ipamd.ledger import Ledger
from ipamd.pool import events as on
from ipamd.pool.pool import Pool
from ipamd.pool.view import View
from ipamd.shell.inspection import Inspection
from ipamd.shell.operations import Operations
from ipamd.shell.readings import Readings
from ipamd.shell.turn import Clock, PoolRunner
from ipamd.shell.uses import UsesSeen
from ipamd.shell.wanted import WantedNetwork
from ipamd.telemetry.tracing import Tracer


@dataclass(frozen=True, slots=True)
class Shell:
    runner: PoolRunner
    reconciler: Reconciler
    readings: Readings
    inspection: Inspection
    wanted: WantedNetwork
    tracer: Tracer


def around(
    pool: Pool,
    ledger: Ledger,
    cloud: Cloud,
    network: HostNetwork,
    vpc: Vpc,
    security_groups: tuple[str, ...],
    clock: Clock,
    on_change: Callable[[], None],
    tracer: Tracer,
) -> Shell:
    """`on_change` is called whenever the pool or the node's network may have changed."""

    def device_gone(eni_id: str) -> None:
        runner.feed(on.DeviceGone(eni_id))

    view = View(pool)
    wanted = WantedNetwork(view, vpc)
    reconciler = Reconciler(network, wanted.node_network, wanted.pod_at, device_gone, clock, on_change)
    readings = Readings(network, vpc, reconciler)
    operations = Operations(view, cloud, network, vpc, readings, wanted, reconciler, security_groups, tracer)
    runner = PoolRunner(pool, ledger, clock, operations.perform, network.catch_up, on_change)
    network.uses.listen(UsesSeen(vpc, runner.tell))
    return Shell(runner, reconciler, readings, Inspection(runner, readings, ledger, cloud), wanted, tracer)
