"""What `ipamd install` fixed for this node; it writes its own version of this module beside the plugin."""

SOCKET = "/run/ipamd/ipamd.sock"  # the daemon's gRPC socket
SPOOL_DIR = "/run/ipamd/released"  # DELs that the daemon did not take
LOG = ""  # a file for a line about each run; empty: none
# An ADD ends by then: the daemon's longest wait by default (pool.allocate_wait, 60 s), in which it may be away for a
# while, and time to plumb or to undo.
ADD_SECONDS = 65.0
DAEMON_SET = False  # the daemon is a pod of the DaemonSet, not a service of systemd
