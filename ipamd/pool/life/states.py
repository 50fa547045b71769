"""The states of an ENI, what is known in each state alone, and every transition between them.

Rule of this module: a transition that is not in `TRANSITIONS` does not happen. `Eni.become` is the only code that
sets a state, and it raises `IllegalTransition` for any other pair. docs/life.md is drawn from the table.

Data that has a meaning in one state only is a field of that state's class, so it ends with the state. Data that
several states share is a field of `Eni`; the tuples at the end say which states it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final

from ipamd.pool.model import EniState


@dataclass(slots=True)
class Creating:
    """CreateNetworkInterface is under way, or its outcome is unknown. `token` is its ClientToken."""

    state: ClassVar = EniState.CREATING
    token: str


@dataclass(slots=True)
class Attaching:
    """The ENI exists and has to be attached to this instance."""

    state: ClassVar = EniState.ATTACHING


@dataclass(slots=True)
class Configuring:
    """Attached; the host has to be set up for its interface."""

    state: ClassVar = EniState.CONFIGURING


@dataclass(slots=True)
class Ready:
    """In service. `verified`: a reading agreed that the addresses that are leaving may go."""

    state: ClassVar = EniState.READY
    verified: bool = False


@dataclass(slots=True)
class Draining:
    """Idle; it will be given back with all of its addresses. `verified`: a reading showed nothing else on it."""

    state: ClassVar = EniState.DRAINING
    verified: bool = False


@dataclass(slots=True)
class Detaching:
    """DetachNetworkInterface is under way, or its outcome is unknown."""

    state: ClassVar = EniState.DETACHING


@dataclass(slots=True)
class Detached:
    """EC2 accepted to detach it. It holds its slot of the instance until EC2 shows it unattached or deletes it."""

    state: ClassVar = EniState.DELETING


@dataclass(slots=True)
class Deleting:
    """Not attached, as far as is known; it will be deleted and holds no slot."""

    state: ClassVar = EniState.DELETING


@dataclass(slots=True)
class Foreign:
    """Another program's ENI: it takes a slot, and nothing is done to it."""

    state: ClassVar = EniState.FOREIGN


Life = Creating | Attaching | Configuring | Ready | Draining | Detaching | Detached | Deleting | Foreign

# Each transition, and what causes it. From None: how the pool gets to know an ENI. From every state an ENI can be
# forgotten, when EC2 no longer has it or it is not ours.
TRANSITIONS: Final[Mapping[tuple[type[Life] | None, type[Life]], str]] = MappingProxyType(
    {
        (None, Creating): "growth, or a creation on record",
        (None, Attaching): "found unattached, and wanted",
        (None, Configuring): "found attached",
        (None, Deleting): "found unattached, and leaked",
        (None, Foreign): "found attached, not ours",
        (Creating, Attaching): "created",
        (Attaching, Configuring): "attached",
        (Attaching, Deleting): "can't be attached",
        (Configuring, Ready): "interface set up",
        (Configuring, Attaching): "found detached",
        (Configuring, Detaching): "restarted while a detachment was under way",
        (Ready, Draining): "idle",
        (Ready, Configuring): "interface vanished, or a pod's address moved here",
        (Ready, Attaching): "found detached",
        (Draining, Detaching): "verified",
        (Draining, Ready): "wanted again",
        (Draining, Configuring): "in use after all",
        (Detaching, Detached): "detached",
        (Detaching, Configuring): "still attached",
        (Detached, Deleting): "found unattached",
        (Detached, Configuring): "found attached",
        (Deleting, Configuring): "found attached",
        (Deleting, Detached): "found detaching",
    }
)

# States in which the ENI has an attachment of ours: `attachment_id`, `in_limbo` and the setting of
# DeleteOnTermination are for these alone.
ATTACHED: Final = (Configuring, Ready, Draining, Detaching)
# States from which the ENI will bring addresses soon: `unfulfilled` is for these alone.
ARRIVING: Final = (Creating, Attaching, Configuring)
# States in which addresses may be on their way back to EC2. In the last two all that nobody holds are.
LEAVING: Final = (*ATTACHED, Detached, Deleting)
GONE_WITH_ENI: Final = (Detached, Deleting)


class IllegalTransition(Exception):
    """A transition that is not in `TRANSITIONS`, or one that leaves data behind that has no meaning in the new state.
    The message has the ENI's last states and their times."""
