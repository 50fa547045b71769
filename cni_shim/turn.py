"""One run at a time for one container's interface, and the last word to DEL.

A runtime that is killed in the middle of an ADD leaves the plugin running; restarted, it sends a DEL which can
arrive while that ADD still works (seen with containerd). A DEL that went through first would release an address that
the ADD then plumbs. So each run binds an abstract Unix socket that carries the interface's name: such a name belongs
to the network namespace, needs no file, and is free again when its owner ends, however it ends.

A DEL that finds the name taken sends its owner a datagram. An ADD looks for one before and after it plumbs, and
undoes itself: also one that was stopped for so long that the DEL did not wait for its end.
"""

import _socket
from errno import EADDRINUSE
from time import monotonic, sleep

_PAUSE = 0.01  # seconds between attempts


def take(host_ifname: str, until: float, overtake: bool = False) -> _socket.socket | None:
    """Wait for the turn. It lasts as long as the socket that is returned; None: another run still had it at `until`
    (a time of `time.monotonic`). `overtake`: whoever has it is told to give up."""
    name = b"\0ipamd-cni/" + host_ifname.encode()
    token = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    told = False
    while True:
        try:
            token.bind(name)
            return token
        except OSError as error:
            if error.errno != EADDRINUSE:
                raise
        if overtake and not told:
            try:
                token.sendto(b"DEL", name)
                told = True
            except OSError:  # it has just ended, or others have told it already
                pass
        if monotonic() >= until:
            token.close()
            return None
        sleep(_PAUSE)


def overtaken(token: _socket.socket) -> bool:
    """Whether a DEL came for what the owner of the turn is making."""
    try:
        return bool(token.recv(8))
    except BlockingIOError:
        return False
