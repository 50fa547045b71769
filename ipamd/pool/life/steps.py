"""The next step of an ENI: which operation takes it on, if one can now. A function of the ENI alone."""

from __future__ import annotations

from typing import assert_never

from ipamd.pool.effects import (
    AttachEni,
    ConfigureLink,
    CreateEni,
    DeleteEni,
    DescribeEni,
    DetachEni,
    SetDeleteOnTermination,
    UnassignAddresses,
)
from ipamd.pool.eni import Eni
from ipamd.pool.life.states import (
    Attaching,
    Configuring,
    Creating,
    Deleting,
    Detached,
    Detaching,
    Draining,
    Foreign,
    Ready,
)

Step = CreateEni | AttachEni | ConfigureLink | DescribeEni | UnassignAddresses | DetachEni | DeleteEni


def next_step(eni: Eni, op: int, creating: bool, now: float) -> Step | None:
    """The operation that takes the ENI on, with the number `op`; None while there is none.

    `creating`: a creation may still turn out to have made one of the ENIs that no record explains, so none of those
    is deleted.
    """
    if eni.busy or now < eni.retry_at:
        return None
    life = eni.life
    match life:
        case Creating(token):
            return CreateEni(op, token, eni.subnet_id, eni.pending)
        case Attaching():
            return DescribeEni(op, eni.id) if eni.unsure else AttachEni(op, eni.id, eni.device_index)
        case Configuring():
            return DescribeEni(op, eni.id) if eni.unsure else _configure(eni, op)
        case Ready():
            return _step_of_ready(eni, life, op)
        case Draining(verified=True) if not eni.unsure:
            return DetachEni(op, eni.id, eni.attachment_id, tuple(eni.leaving))
        case Draining() | Detaching():
            return DescribeEni(op, eni.id)
        case Detached():
            return DescribeEni(op, eni.id) if eni.unsure else DeleteEni(op, eni.id)
        case Deleting():
            if eni.unsure:
                return DescribeEni(op, eni.id)
            return None if creating else DeleteEni(op, eni.id)
        case Foreign():
            return None
        case _:
            assert_never(life)


def _step_of_ready(eni: Eni, ready: Ready, op: int) -> Step | None:
    """What it is asked for at this moment has to be answered before it is read: only then can it be told whose an
    address is."""
    if eni.unsure:
        return None if eni.pending else DescribeEni(op, eni.id)
    if not eni.leaving:
        return None
    if ready.verified:
        return UnassignAddresses(op, eni.id, tuple(eni.leaving))
    return DescribeEni(op, eni.id)


def _configure(eni: Eni, op: int) -> ConfigureLink:
    return ConfigureLink(op, eni.id, eni.mac, eni.device_index, eni.subnet_id)


def termination_step(eni: Eni, op: int, now: float) -> SetDeleteOnTermination | None:
    """Beside its life, an attachment is set up to go with its instance, once."""
    due = eni.keep_on_termination and not eni.modifying and now >= eni.modify_at
    if not due or not isinstance(eni.life, Configuring | Ready):
        return None
    return SetDeleteOnTermination(op, eni.id, eni.attachment_id)
