from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PolicyMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_MODE_UNSPECIFIED: _ClassVar[PolicyMode]
    POLICY_MODE_STANDARD: _ClassVar[PolicyMode]
    POLICY_MODE_STRICT: _ClassVar[PolicyMode]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_SUBNET_EXHAUSTED: _ClassVar[Reason]
    REASON_ENI_LIMIT: _ClassVar[Reason]
    REASON_ALL_COOLING: _ClassVar[Reason]
    REASON_THROTTLED: _ClassVar[Reason]
    REASON_NOT_AUTHORIZED: _ClassVar[Reason]
    REASON_SECURITY_GROUP_INVALID: _ClassVar[Reason]
    REASON_DRAINING: _ClassVar[Reason]
    REASON_TIMEOUT: _ClassVar[Reason]
    REASON_POD_LIMIT: _ClassVar[Reason]
    REASON_CLOUD_UNAVAILABLE: _ClassVar[Reason]
    REASON_LEDGER_UNWRITABLE: _ClassVar[Reason]
    REASON_INVALID_REQUEST: _ClassVar[Reason]
    REASON_INVALID_CONFIG: _ClassVar[Reason]
    REASON_INCOMPATIBLE_VERSION: _ClassVar[Reason]
    REASON_UNKNOWN_ATTACHMENT: _ClassVar[Reason]
    REASON_ATTACHMENT_BROKEN: _ClassVar[Reason]
    REASON_NOT_READY: _ClassVar[Reason]
    REASON_ADDRESS_LIMIT: _ClassVar[Reason]
    REASON_RELEASED: _ClassVar[Reason]
    REASON_NETWORK_BROKEN: _ClassVar[Reason]
    REASON_DRAINED: _ClassVar[Reason]
    REASON_REQUEST_REFUSED: _ClassVar[Reason]
    REASON_POLICY_NOT_ENFORCED: _ClassVar[Reason]
    REASON_ADDRESS_UNAVAILABLE: _ClassVar[Reason]
POLICY_MODE_UNSPECIFIED: PolicyMode
POLICY_MODE_STANDARD: PolicyMode
POLICY_MODE_STRICT: PolicyMode
REASON_UNSPECIFIED: Reason
REASON_SUBNET_EXHAUSTED: Reason
REASON_ENI_LIMIT: Reason
REASON_ALL_COOLING: Reason
REASON_THROTTLED: Reason
REASON_NOT_AUTHORIZED: Reason
REASON_SECURITY_GROUP_INVALID: Reason
REASON_DRAINING: Reason
REASON_TIMEOUT: Reason
REASON_POD_LIMIT: Reason
REASON_CLOUD_UNAVAILABLE: Reason
REASON_LEDGER_UNWRITABLE: Reason
REASON_INVALID_REQUEST: Reason
REASON_INVALID_CONFIG: Reason
REASON_INCOMPATIBLE_VERSION: Reason
REASON_UNKNOWN_ATTACHMENT: Reason
REASON_ATTACHMENT_BROKEN: Reason
REASON_NOT_READY: Reason
REASON_ADDRESS_LIMIT: Reason
REASON_RELEASED: Reason
REASON_NETWORK_BROKEN: Reason
REASON_DRAINED: Reason
REASON_REQUEST_REFUSED: Reason
REASON_POLICY_NOT_ENFORCED: Reason
REASON_ADDRESS_UNAVAILABLE: Reason

class CniCall(_message.Message):
    __slots__ = ("container_id", "ifname", "netns", "args", "path", "config")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    IFNAME_FIELD_NUMBER: _ClassVar[int]
    NETNS_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    ifname: str
    netns: str
    args: str
    path: str
    config: bytes
    def __init__(self, container_id: _Optional[str] = ..., ifname: _Optional[str] = ..., netns: _Optional[str] = ..., args: _Optional[str] = ..., path: _Optional[str] = ..., config: _Optional[bytes] = ...) -> None: ...

class Attachment(_message.Message):
    __slots__ = ("network", "container_id", "ifname", "netns", "pod_name", "pod_namespace", "pod_uid")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    IFNAME_FIELD_NUMBER: _ClassVar[int]
    NETNS_FIELD_NUMBER: _ClassVar[int]
    POD_NAME_FIELD_NUMBER: _ClassVar[int]
    POD_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_UID_FIELD_NUMBER: _ClassVar[int]
    network: str
    container_id: str
    ifname: str
    netns: str
    pod_name: str
    pod_namespace: str
    pod_uid: str
    def __init__(self, network: _Optional[str] = ..., container_id: _Optional[str] = ..., ifname: _Optional[str] = ..., netns: _Optional[str] = ..., pod_name: _Optional[str] = ..., pod_namespace: _Optional[str] = ..., pod_uid: _Optional[str] = ...) -> None: ...

class AllocateRequest(_message.Message):
    __slots__ = ("cni", "attachment", "deadline_ms")
    CNI_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    cni: CniCall
    attachment: Attachment
    deadline_ms: int
    def __init__(self, cni: _Optional[_Union[CniCall, _Mapping]] = ..., attachment: _Optional[_Union[Attachment, _Mapping]] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class AllocateReply(_message.Message):
    __slots__ = ("address", "prefix_length", "gateway", "ifname", "host_ifname", "mac", "host_mac", "mtu", "link_group", "table", "route_protocol", "netns", "result", "request_id", "result_beside", "policy")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    IFNAME_FIELD_NUMBER: _ClassVar[int]
    HOST_IFNAME_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    HOST_MAC_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    LINK_GROUP_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROUTE_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NETNS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_BESIDE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    address: bytes
    prefix_length: int
    gateway: bytes
    ifname: str
    host_ifname: str
    mac: bytes
    host_mac: bytes
    mtu: int
    link_group: int
    table: int
    route_protocol: int
    netns: str
    result: bytes
    request_id: str
    result_beside: bytes
    policy: PolicyMode
    def __init__(self, address: _Optional[bytes] = ..., prefix_length: _Optional[int] = ..., gateway: _Optional[bytes] = ..., ifname: _Optional[str] = ..., host_ifname: _Optional[str] = ..., mac: _Optional[bytes] = ..., host_mac: _Optional[bytes] = ..., mtu: _Optional[int] = ..., link_group: _Optional[int] = ..., table: _Optional[int] = ..., route_protocol: _Optional[int] = ..., netns: _Optional[str] = ..., result: _Optional[bytes] = ..., request_id: _Optional[str] = ..., result_beside: _Optional[bytes] = ..., policy: _Optional[_Union[PolicyMode, str]] = ...) -> None: ...

class EnforceRequest(_message.Message):
    __slots__ = ("cni", "attachment")
    CNI_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    cni: CniCall
    attachment: Attachment
    def __init__(self, cni: _Optional[_Union[CniCall, _Mapping]] = ..., attachment: _Optional[_Union[Attachment, _Mapping]] = ...) -> None: ...

class EnforceReply(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("cni", "attachment")
    CNI_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    cni: CniCall
    attachment: Attachment
    def __init__(self, cni: _Optional[_Union[CniCall, _Mapping]] = ..., attachment: _Optional[_Union[Attachment, _Mapping]] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ("released", "address", "host_ifname", "request_id")
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HOST_IFNAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    released: bool
    address: bytes
    host_ifname: str
    request_id: str
    def __init__(self, released: _Optional[bool] = ..., address: _Optional[bytes] = ..., host_ifname: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("cni", "attachment")
    CNI_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    cni: CniCall
    attachment: Attachment
    def __init__(self, cni: _Optional[_Union[CniCall, _Mapping]] = ..., attachment: _Optional[_Union[Attachment, _Mapping]] = ...) -> None: ...

class CheckReply(_message.Message):
    __slots__ = ("address", "host_ifname", "request_id", "gateway")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HOST_IFNAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    address: bytes
    host_ifname: str
    request_id: str
    gateway: bytes
    def __init__(self, address: _Optional[bytes] = ..., host_ifname: _Optional[str] = ..., request_id: _Optional[str] = ..., gateway: _Optional[bytes] = ...) -> None: ...

class CollectRequest(_message.Message):
    __slots__ = ("cni", "valid")
    CNI_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    cni: CniCall
    valid: ValidAttachments
    def __init__(self, cni: _Optional[_Union[CniCall, _Mapping]] = ..., valid: _Optional[_Union[ValidAttachments, _Mapping]] = ...) -> None: ...

class ValidAttachments(_message.Message):
    __slots__ = ("network", "attachments")
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENTS_FIELD_NUMBER: _ClassVar[int]
    network: str
    attachments: _containers.RepeatedCompositeFieldContainer[Attachment]
    def __init__(self, network: _Optional[str] = ..., attachments: _Optional[_Iterable[_Union[Attachment, _Mapping]]] = ...) -> None: ...

class CollectReply(_message.Message):
    __slots__ = ("released", "request_id")
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    released: int
    request_id: str
    def __init__(self, released: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class ReadyRequest(_message.Message):
    __slots__ = ("cni",)
    CNI_FIELD_NUMBER: _ClassVar[int]
    cni: CniCall
    def __init__(self, cni: _Optional[_Union[CniCall, _Mapping]] = ...) -> None: ...

class ReadyReply(_message.Message):
    __slots__ = ("free", "request_id")
    FREE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    free: int
    request_id: str
    def __init__(self, free: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...
