"""What the failure of a call on an ENI means for the ENI: a table in which every cell is decided.

The scope of a failure, who is left alone after it and for how long, is another question (backoff.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from ipamd.pool import effects as do
from ipamd.pool.model import CloudErrorKind


class Failed(Enum):
    """The values are the meanings, as docs/life.md shows them.

    UNSAID is about a ClientToken: EC2 checks some causes for any call, and those of REFUSED only for a token that it
    has not seen.
    """

    AGAIN = "it says nothing of the ENI: repeat the call after the back-off"
    READ = "it had no effect, since EC2 and the pool disagree about the ENI: read it first"
    UNANSWERED = "it may have had its effect: keep the record, and read the ENI first"
    REFUSED = "it had no effect and will have none"
    UNSAID = "it had no effect, but an earlier try with the same ClientToken may have had one: then repeat it"
    NO_SLOT = "refused, since the instance takes no more ENIs: find out who has the slots"
    INDEX_TAKEN = "something may sit at its device index: read it, and try another one"
    GONE = "EC2 does not have it: forget it, unless it is young"


_AGAIN, _READ, _REFUSED, _UNSAID = Failed.AGAIN, Failed.READ, Failed.REFUSED, Failed.UNSAID
_UNANSWERED, _INDEX, _NO_SLOT, _GONE = Failed.UNANSWERED, Failed.INDEX_TAKEN, Failed.NO_SLOT, Failed.GONE

_CALLS: Final[tuple[tuple[type[do.EniOperation], ...], ...]] = (
    (do.CreateEni,),
    (do.AttachEni,),
    (do.AssignAddresses,),
    (do.UnassignAddresses, do.DetachEni),
    (do.DeleteEni,),
    (do.DescribeEni, do.ConfigureLink, do.SetDeleteOnTermination),
)
# A column is a group of calls, in the order above.
_TABLE: Final = {
    #                                       create       attach       assign       give back    delete  others
    CloudErrorKind.THROTTLED:              (_UNSAID,     _AGAIN,      _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
    CloudErrorKind.TRANSIENT:              (_UNSAID,     _AGAIN,      _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
    CloudErrorKind.UNKNOWN_OUTCOME:        (_UNANSWERED, _UNANSWERED, _UNANSWERED, _UNANSWERED, _AGAIN, _AGAIN),
    CloudErrorKind.SUBNET_FULL:            (_REFUSED,    _REFUSED,    _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
    CloudErrorKind.ENI_ADDRESS_LIMIT:      (_REFUSED,    _REFUSED,    _READ,       _READ,       _AGAIN, _AGAIN),
    CloudErrorKind.ATTACHMENT_LIMIT:       (_REFUSED,    _NO_SLOT,    _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
    CloudErrorKind.ACCOUNT_ENI_LIMIT:      (_REFUSED,    _REFUSED,    _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
    CloudErrorKind.NOT_FOUND:              (_REFUSED,    _READ,       _READ,       _READ,       _GONE,  _AGAIN),
    CloudErrorKind.INCORRECT_STATE:        (_REFUSED,    _INDEX,      _REFUSED,    _READ,       _READ,  _AGAIN),
    CloudErrorKind.NOT_AUTHORIZED:         (_UNSAID,     _REFUSED,    _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
    CloudErrorKind.SECURITY_GROUP_INVALID: (_REFUSED,    _REFUSED,    _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
    CloudErrorKind.SUBNET_INVALID:         (_REFUSED,    _REFUSED,    _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
    CloudErrorKind.INVALID:                (_REFUSED,    _REFUSED,    _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
    CloudErrorKind.IN_USE:                 (_REFUSED,    _REFUSED,    _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
    CloudErrorKind.UNRECORDED:             (_UNSAID,     _AGAIN,      _REFUSED,    _REFUSED,    _AGAIN, _AGAIN),
}  # fmt: skip

FAILED: Final[Mapping[tuple[type[do.EniOperation], CloudErrorKind], Failed]] = MappingProxyType(
    {
        (call, kind): verdict
        for kind, row in _TABLE.items()
        for calls, verdict in zip(_CALLS, row, strict=True)
        for call in calls
    }
)


def failed(call: do.EniOperation, kind: CloudErrorKind) -> Failed:
    return FAILED[type(call), kind]
