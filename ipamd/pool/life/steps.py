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
    if _to_be_read(eni):
        return DescribeEni(op, eni.id)
    life = eni.life
    match life:
        case Creating(token):
            return CreateEni(op, token, eni.subnet_id, eni.pending)
        case Attaching():
            return AttachEni(op, eni.id, eni.device_index)
        case Configuring():
            return ConfigureLink(op, eni.id, eni.mac, eni.device_index, eni.subnet_id)
        case Ready():
            return UnassignAddresses(op, eni.id, tuple(eni.leaving)) if _may_give_back(eni, life) else None
        case Draining():
            return DetachEni(op, eni.id, eni.attachment_id, tuple(eni.leaving))
        case Detached():
            return DeleteEni(op, eni.id)
        case Deleting():
            return None if creating else DeleteEni(op, eni.id)
        case Detaching() | Foreign():
            return None
        case _:
            assert_never(life)


def _to_be_read(eni: Eni) -> bool:
    """Whether EC2 has to be asked what there is before anything else can be done. What a ready ENI is asked for at
    this moment has to be answered first: only its answer shows whose an address is."""
    life = eni.life
    match life:
        case Ready():
            return not eni.pending if eni.unsure else bool(eni.leaving) and not life.verified
        case Draining():
            return eni.unsure or not life.verified
        case Detaching():
            return True
        case Attaching() | Configuring() | Detached() | Deleting():
            return eni.unsure
        case Creating() | Foreign():
            return False
        case _:
            assert_never(life)


def _may_give_back(eni: Eni, ready: Ready) -> bool:
    return ready.verified and bool(eni.leaving) and not eni.unsure


def termination_step(eni: Eni, op: int, now: float) -> SetDeleteOnTermination | None:
    """Beside its life, an attachment is set up to go with its instance, once."""
    due = eni.keep_on_termination and not eni.modifying and now >= eni.modify_at
    if not due or not isinstance(eni.life, Configuring | Ready):
        return None
    return SetDeleteOnTermination(op, eni.id, eni.attachment_id)
