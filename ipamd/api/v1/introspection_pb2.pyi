import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetNodeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Node(_message.Message):
    __slots__ = ("instance_id", "instance_type", "availability_zone", "version", "started", "counts", "targets", "max_enis", "addresses_per_eni", "ready", "not_ready_reason", "backoffs", "budget", "host", "troubles", "subnets", "drained", "denied", "conditions", "would_refuse", "start", "slots", "attachment_troubles", "withheld", "withheld_for")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_TYPE_FIELD_NUMBER: _ClassVar[int]
    AVAILABILITY_ZONE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    MAX_ENIS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_PER_ENI_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    NOT_READY_REASON_FIELD_NUMBER: _ClassVar[int]
    BACKOFFS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    TROUBLES_FIELD_NUMBER: _ClassVar[int]
    SUBNETS_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    DENIED_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    WOULD_REFUSE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_TROUBLES_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FOR_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    instance_type: str
    availability_zone: str
    version: str
    started: _timestamp_pb2.Timestamp
    counts: Counts
    targets: Targets
    max_enis: int
    addresses_per_eni: int
    ready: bool
    not_ready_reason: str
    backoffs: _containers.RepeatedCompositeFieldContainer[Backoff]
    budget: _containers.RepeatedCompositeFieldContainer[Bucket]
    host: HostNetwork
    troubles: _containers.RepeatedCompositeFieldContainer[Event]
    subnets: _containers.RepeatedCompositeFieldContainer[Subnet]
    drained: _timestamp_pb2.Timestamp
    denied: _containers.RepeatedCompositeFieldContainer[DeniedAction]
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    would_refuse: str
    start: Start
    slots: Slots
    attachment_troubles: _containers.RepeatedCompositeFieldContainer[AttachmentTrouble]
    withheld: int
    withheld_for: str
    def __init__(self, instance_id: _Optional[str] = ..., instance_type: _Optional[str] = ..., availability_zone: _Optional[str] = ..., version: _Optional[str] = ..., started: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., counts: _Optional[_Union[Counts, _Mapping]] = ..., targets: _Optional[_Union[Targets, _Mapping]] = ..., max_enis: _Optional[int] = ..., addresses_per_eni: _Optional[int] = ..., ready: _Optional[bool] = ..., not_ready_reason: _Optional[str] = ..., backoffs: _Optional[_Iterable[_Union[Backoff, _Mapping]]] = ..., budget: _Optional[_Iterable[_Union[Bucket, _Mapping]]] = ..., host: _Optional[_Union[HostNetwork, _Mapping]] = ..., troubles: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., subnets: _Optional[_Iterable[_Union[Subnet, _Mapping]]] = ..., drained: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., denied: _Optional[_Iterable[_Union[DeniedAction, _Mapping]]] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., would_refuse: _Optional[str] = ..., start: _Optional[_Union[Start, _Mapping]] = ..., slots: _Optional[_Union[Slots, _Mapping]] = ..., attachment_troubles: _Optional[_Iterable[_Union[AttachmentTrouble, _Mapping]]] = ..., withheld: _Optional[int] = ..., withheld_for: _Optional[str] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("phase", "text", "since", "tries", "last_error")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    TRIES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    phase: str
    text: str
    since: _timestamp_pb2.Timestamp
    tries: int
    last_error: str
    def __init__(self, phase: _Optional[str] = ..., text: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tries: _Optional[int] = ..., last_error: _Optional[str] = ...) -> None: ...

class AttachmentTrouble(_message.Message):
    __slots__ = ("kind", "attachment", "cause", "since")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    attachment: AttachmentInfo
    cause: str
    since: _timestamp_pb2.Timestamp
    def __init__(self, kind: _Optional[str] = ..., attachment: _Optional[_Union[AttachmentInfo, _Mapping]] = ..., cause: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("name", "text", "since")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    since: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class DeniedAction(_message.Message):
    __slots__ = ("action", "consequence")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CONSEQUENCE_FIELD_NUMBER: _ClassVar[int]
    action: str
    consequence: str
    def __init__(self, action: _Optional[str] = ..., consequence: _Optional[str] = ...) -> None: ...

class Subnet(_message.Message):
    __slots__ = ("id", "available", "seen")
    ID_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    available: int
    seen: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., available: _Optional[int] = ..., seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class HostNetwork(_message.Message):
    __slots__ = ("repairs", "last_repair", "last_what", "last_by", "disputes", "error")
    REPAIRS_FIELD_NUMBER: _ClassVar[int]
    LAST_REPAIR_FIELD_NUMBER: _ClassVar[int]
    LAST_WHAT_FIELD_NUMBER: _ClassVar[int]
    LAST_BY_FIELD_NUMBER: _ClassVar[int]
    DISPUTES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    repairs: int
    last_repair: _timestamp_pb2.Timestamp
    last_what: str
    last_by: str
    disputes: _containers.RepeatedCompositeFieldContainer[Dispute]
    error: str
    def __init__(self, repairs: _Optional[int] = ..., last_repair: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_what: _Optional[str] = ..., last_by: _Optional[str] = ..., disputes: _Optional[_Iterable[_Union[Dispute, _Mapping]]] = ..., error: _Optional[str] = ...) -> None: ...

class Dispute(_message.Message):
    __slots__ = ("what", "by", "since", "last", "repairs", "delay")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    REPAIRS_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    what: str
    by: str
    since: _timestamp_pb2.Timestamp
    last: _timestamp_pb2.Timestamp
    repairs: int
    delay: float
    def __init__(self, what: _Optional[str] = ..., by: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., repairs: _Optional[int] = ..., delay: _Optional[float] = ...) -> None: ...

class Counts(_message.Message):
    __slots__ = ("free", "assigned", "cooling", "releasing", "pending", "waiting", "total")
    FREE_FIELD_NUMBER: _ClassVar[int]
    ASSIGNED_FIELD_NUMBER: _ClassVar[int]
    COOLING_FIELD_NUMBER: _ClassVar[int]
    RELEASING_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    free: int
    assigned: int
    cooling: int
    releasing: int
    pending: int
    waiting: int
    total: int
    def __init__(self, free: _Optional[int] = ..., assigned: _Optional[int] = ..., cooling: _Optional[int] = ..., releasing: _Optional[int] = ..., pending: _Optional[int] = ..., waiting: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class Slots(_message.Message):
    __slots__ = ("enis", "foreign", "eni_limit", "pod_limit")
    ENIS_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    ENI_LIMIT_FIELD_NUMBER: _ClassVar[int]
    POD_LIMIT_FIELD_NUMBER: _ClassVar[int]
    enis: int
    foreign: int
    eni_limit: int
    pod_limit: int
    def __init__(self, enis: _Optional[int] = ..., foreign: _Optional[int] = ..., eni_limit: _Optional[int] = ..., pod_limit: _Optional[int] = ...) -> None: ...

class Targets(_message.Message):
    __slots__ = ("warm_ips", "minimum_ips", "max_pods", "cooldown", "allocate_wait", "warm_enis", "max_enis", "slack", "release_delay")
    WARM_IPS_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_IPS_FIELD_NUMBER: _ClassVar[int]
    MAX_PODS_FIELD_NUMBER: _ClassVar[int]
    COOLDOWN_FIELD_NUMBER: _ClassVar[int]
    ALLOCATE_WAIT_FIELD_NUMBER: _ClassVar[int]
    WARM_ENIS_FIELD_NUMBER: _ClassVar[int]
    MAX_ENIS_FIELD_NUMBER: _ClassVar[int]
    SLACK_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DELAY_FIELD_NUMBER: _ClassVar[int]
    warm_ips: int
    minimum_ips: int
    max_pods: int
    cooldown: float
    allocate_wait: float
    warm_enis: int
    max_enis: int
    slack: int
    release_delay: float
    def __init__(self, warm_ips: _Optional[int] = ..., minimum_ips: _Optional[int] = ..., max_pods: _Optional[int] = ..., cooldown: _Optional[float] = ..., allocate_wait: _Optional[float] = ..., warm_enis: _Optional[int] = ..., max_enis: _Optional[int] = ..., slack: _Optional[int] = ..., release_delay: _Optional[float] = ...) -> None: ...

class Backoff(_message.Message):
    __slots__ = ("scope", "reason", "message", "until")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    scope: str
    reason: str
    message: str
    until: _timestamp_pb2.Timestamp
    def __init__(self, scope: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Bucket(_message.Message):
    __slots__ = ("action", "rate", "tokens", "waiting", "throttled", "waits")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    action: str
    rate: float
    tokens: float
    waiting: int
    throttled: int
    waits: _containers.RepeatedCompositeFieldContainer[Waits]
    def __init__(self, action: _Optional[str] = ..., rate: _Optional[float] = ..., tokens: _Optional[float] = ..., waiting: _Optional[int] = ..., throttled: _Optional[int] = ..., waits: _Optional[_Iterable[_Union[Waits, _Mapping]]] = ...) -> None: ...

class Waits(_message.Message):
    __slots__ = ("priority", "waiting", "count", "delayed", "total", "longest")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DELAYED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LONGEST_FIELD_NUMBER: _ClassVar[int]
    priority: str
    waiting: int
    count: int
    delayed: int
    total: float
    longest: float
    def __init__(self, priority: _Optional[str] = ..., waiting: _Optional[int] = ..., count: _Optional[int] = ..., delayed: _Optional[int] = ..., total: _Optional[float] = ..., longest: _Optional[float] = ...) -> None: ...

class ListEnisRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListEnisReply(_message.Message):
    __slots__ = ("enis",)
    ENIS_FIELD_NUMBER: _ClassVar[int]
    enis: _containers.RepeatedCompositeFieldContainer[Eni]
    def __init__(self, enis: _Optional[_Iterable[_Union[Eni, _Mapping]]] = ...) -> None: ...

class Eni(_message.Message):
    __slots__ = ("id", "device_index", "primary", "state", "mac", "subnet_id", "primary_ip", "free", "assigned", "cooling", "releasing", "pending", "capacity", "link", "foreign", "network_card", "prefixes", "room")
    ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    SUBNET_ID_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_IP_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    ASSIGNED_FIELD_NUMBER: _ClassVar[int]
    COOLING_FIELD_NUMBER: _ClassVar[int]
    RELEASING_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    NETWORK_CARD_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    id: str
    device_index: int
    primary: bool
    state: str
    mac: str
    subnet_id: str
    primary_ip: str
    free: int
    assigned: int
    cooling: int
    releasing: int
    pending: int
    capacity: int
    link: str
    foreign: int
    network_card: int
    prefixes: _containers.RepeatedScalarFieldContainer[str]
    room: int
    def __init__(self, id: _Optional[str] = ..., device_index: _Optional[int] = ..., primary: _Optional[bool] = ..., state: _Optional[str] = ..., mac: _Optional[str] = ..., subnet_id: _Optional[str] = ..., primary_ip: _Optional[str] = ..., free: _Optional[int] = ..., assigned: _Optional[int] = ..., cooling: _Optional[int] = ..., releasing: _Optional[int] = ..., pending: _Optional[int] = ..., capacity: _Optional[int] = ..., link: _Optional[str] = ..., foreign: _Optional[int] = ..., network_card: _Optional[int] = ..., prefixes: _Optional[_Iterable[str]] = ..., room: _Optional[int] = ...) -> None: ...

class ListAddressesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAddressesReply(_message.Message):
    __slots__ = ("addresses",)
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedCompositeFieldContainer[Address]
    def __init__(self, addresses: _Optional[_Iterable[_Union[Address, _Mapping]]] = ...) -> None: ...

class Address(_message.Message):
    __slots__ = ("ip", "eni", "state", "since", "cause")
    IP_FIELD_NUMBER: _ClassVar[int]
    ENI_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    ip: str
    eni: str
    state: str
    since: _timestamp_pb2.Timestamp
    cause: str
    def __init__(self, ip: _Optional[str] = ..., eni: _Optional[str] = ..., state: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cause: _Optional[str] = ...) -> None: ...

class ListAttachmentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAttachmentsReply(_message.Message):
    __slots__ = ("attachments",)
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    attachments: _containers.RepeatedCompositeFieldContainer[AttachmentInfo]
    def __init__(self, attachments: _Optional[_Iterable[_Union[AttachmentInfo, _Mapping]]] = ...) -> None: ...

class AttachmentInfo(_message.Message):
    __slots__ = ("network", "container_id", "ifname", "ip", "eni", "pod_name", "pod_namespace", "pod_uid", "netns", "since", "host_ifname", "trouble")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    IFNAME_FIELD_NUMBER: _ClassVar[int]
    IP_FIELD_NUMBER: _ClassVar[int]
    ENI_FIELD_NUMBER: _ClassVar[int]
    POD_NAME_FIELD_NUMBER: _ClassVar[int]
    POD_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    NETNS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    HOST_IFNAME_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    network: str
    container_id: str
    ifname: str
    ip: str
    eni: str
    pod_name: str
    pod_namespace: str
    pod_uid: str
    netns: str
    since: _timestamp_pb2.Timestamp
    host_ifname: str
    trouble: str
    def __init__(self, network: _Optional[str] = ..., container_id: _Optional[str] = ..., ifname: _Optional[str] = ..., ip: _Optional[str] = ..., eni: _Optional[str] = ..., pod_name: _Optional[str] = ..., pod_namespace: _Optional[str] = ..., pod_uid: _Optional[str] = ..., netns: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., host_ifname: _Optional[str] = ..., trouble: _Optional[str] = ...) -> None: ...

class ListWaitingRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWaitingReply(_message.Message):
    __slots__ = ("waiting",)
    WAITING_FIELD_NUMBER: _ClassVar[int]
    waiting: _containers.RepeatedCompositeFieldContainer[Waiting]
    def __init__(self, waiting: _Optional[_Iterable[_Union[Waiting, _Mapping]]] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("network", "container_id", "ifname", "pod_name", "pod_namespace", "since", "deadline", "request_id", "waits_for")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    IFNAME_FIELD_NUMBER: _ClassVar[int]
    POD_NAME_FIELD_NUMBER: _ClassVar[int]
    POD_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    network: str
    container_id: str
    ifname: str
    pod_name: str
    pod_namespace: str
    since: _timestamp_pb2.Timestamp
    deadline: _timestamp_pb2.Timestamp
    request_id: str
    waits_for: str
    def __init__(self, network: _Optional[str] = ..., container_id: _Optional[str] = ..., ifname: _Optional[str] = ..., pod_name: _Optional[str] = ..., pod_namespace: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., request_id: _Optional[str] = ..., waits_for: _Optional[str] = ...) -> None: ...

class GetSettingsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetSettingsReply(_message.Message):
    __slots__ = ("settings",)
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    settings: _containers.RepeatedCompositeFieldContainer[Setting]
    def __init__(self, settings: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ...) -> None: ...

class Setting(_message.Message):
    __slots__ = ("key", "value", "origin", "live")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    origin: str
    live: bool
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ..., origin: _Optional[str] = ..., live: _Optional[bool] = ...) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ("last", "follow", "level")
    LAST_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    last: int
    follow: bool
    level: str
    def __init__(self, last: _Optional[int] = ..., follow: _Optional[bool] = ..., level: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "at", "level", "name", "fields")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    number: int
    at: _timestamp_pb2.Timestamp
    level: str
    name: str
    fields: _struct_pb2.Struct
    def __init__(self, number: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., level: _Optional[str] = ..., name: _Optional[str] = ..., fields: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("pod", "pool", "address")
    POD_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    pod: str
    pool: PoolSubject
    address: str
    def __init__(self, pod: _Optional[str] = ..., pool: _Optional[_Union[PoolSubject, _Mapping]] = ..., address: _Optional[str] = ...) -> None: ...

class PoolSubject(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("state", "headline", "because", "next", "advice", "numbers")
    class NumbersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    HEADLINE_FIELD_NUMBER: _ClassVar[int]
    BECAUSE_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    state: str
    headline: str
    because: _containers.RepeatedScalarFieldContainer[str]
    next: _containers.RepeatedScalarFieldContainer[str]
    advice: _containers.RepeatedScalarFieldContainer[str]
    numbers: _containers.ScalarMap[str, float]
    def __init__(self, state: _Optional[str] = ..., headline: _Optional[str] = ..., because: _Optional[_Iterable[str]] = ..., next: _Optional[_Iterable[str]] = ..., advice: _Optional[_Iterable[str]] = ..., numbers: _Optional[_Mapping[str, float]] = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuditReply(_message.Message):
    __slots__ = ("at", "mismatches", "enis", "addresses", "attachments", "routes")
    AT_FIELD_NUMBER: _ClassVar[int]
    MISMATCHES_FIELD_NUMBER: _ClassVar[int]
    ENIS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    mismatches: _containers.RepeatedCompositeFieldContainer[Mismatch]
    enis: int
    addresses: int
    attachments: int
    routes: int
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., mismatches: _Optional[_Iterable[_Union[Mismatch, _Mapping]]] = ..., enis: _Optional[int] = ..., addresses: _Optional[int] = ..., attachments: _Optional[int] = ..., routes: _Optional[int] = ...) -> None: ...

class Mismatch(_message.Message):
    __slots__ = ("kind", "subject", "ec2", "ledger", "kernel", "meaning", "remedy")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    EC2_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    subject: str
    ec2: str
    ledger: str
    kernel: str
    meaning: str
    remedy: str
    def __init__(self, kind: _Optional[str] = ..., subject: _Optional[str] = ..., ec2: _Optional[str] = ..., ledger: _Optional[str] = ..., kernel: _Optional[str] = ..., meaning: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...
