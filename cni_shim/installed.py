"""What `ipamd install` fixed for this node; it writes its own version of this module beside the plugin."""

SOCKET = "/run/ipamd/ipamd.sock"  # the daemon's gRPC socket
SPOOL_DIR = "/run/ipamd/released"  # DELs that the daemon did not take
LOG = ""  # a file for a line about each run; empty: none
ADD_SECONDS = 35.0  # an ADD ends by then: the daemon's longest wait (30 s) and time to plumb or to undo
