"""The CNI plugin `ipamd-cni`: asks the daemon for an address and plumbs the veth pair.

A container runtime executes it anew for every ADD and DEL, so most of a pod's network latency is this program's
start. Hence the rule of this package: it imports built-in and C modules only (`posix` rather than `os`, `_socket`
rather than `socket`, never `json`, `re` or `typing`), parses no JSON and decides nothing. It hands the runtime's
input to the daemon as it is and carries out the plan that comes back.

`main` holds the verbs; `grpc_call` with `hpack` (and `huffman`, if ever needed) speaks to the daemon; `protobuf`
translates the messages; `plumbing` with `netlink` and `namespace` works on the kernel; `spool` keeps a DEL that the
daemon did not take; `turn` keeps two runs for one container apart;
`inspection` is for CHECK; `journal` is a log on request; `installed` holds what `ipamd install` fixed.
"""
