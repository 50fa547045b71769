"""One run at a time for one container's interface.

A runtime that is killed in the middle of an ADD leaves the plugin running; restarted, it sends a DEL which can
arrive while that ADD still works (seen with containerd). A DEL that went through first would release an address that
the ADD then plumbs. So each run binds an abstract Unix socket that carries the interface's name: such a name belongs
to the network namespace, needs no file, and is free again when its owner ends, however it ends.
"""

import _socket
from errno import EADDRINUSE
from time import monotonic, sleep

_PAUSE = 0.01  # seconds between attempts


def take(host_ifname: str, until: float) -> _socket.socket | None:
    """Wait for the turn. It lasts as long as the socket that is returned; None: another run still had it at `until`
    (a time of `time.monotonic`)."""
    token = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    while True:
        try:
            token.bind("\0ipamd-cni/" + host_ifname)
            return token
        except OSError as error:
            if error.errno != EADDRINUSE:
                raise
        if monotonic() >= until:
            token.close()
            return None
        sleep(_PAUSE)
