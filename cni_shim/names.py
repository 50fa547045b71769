"""What the daemon and the plugin call things without having told each other: a veth pair's host end, computed alike
for a plan and for a DEL, the link group of pairs that are out of service, and the record that the node serves.

DEL has to find the interface when the daemon is away and the runtime has forgotten the result of ADD, so the name
follows from what every DEL carries. FNV-1a, because importing hashlib costs more than the rest of a DEL.
"""

_FNV_OFFSET = 0xCBF29CE484222325  # 64-bit parameters: draft-eastlake-fnv, section 5
_FNV_PRIME = 0x100000001B3
_MASK_64 = 0xFFFFFFFFFFFFFFFF
_MASK_48 = 0xFFFFFFFFFFFF

# "ipmd": the plugin moves a pair here with DEL, and the daemon deletes the whole group at once. A DEL that deleted
# its pair by itself would wait for a grace period of the kernel: 16-30 ms, while 20 pairs together take 12.
DISCARDED_GROUP = 0x69706D64

# The folder beside the daemon's socket in which a plugin leaves DELs when it was installed without another one.
SPOOL = "released"


def fnv1a_64(data: bytes) -> int:
    value = _FNV_OFFSET
    for byte in data:
        value = (value ^ byte) * _FNV_PRIME & _MASK_64
    return value


def host_ifname(container_id: str, ifname: str) -> str:
    """`ipm` and 12 hexadecimal digits: 15 characters, the most that the kernel takes (IFNAMSIZ - 1)."""
    value = fnv1a_64(container_id.encode() + b"\0" + ifname.encode())
    return "ipm%012x" % ((value >> 48) ^ (value & _MASK_48))


def served_record(socket: str) -> str:
    """The file for cni_shim/served.py, beside the daemon's socket."""
    return socket + ".served"
