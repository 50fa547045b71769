"""The plugin's log, for the search for a fault: off unless `ipamd install --plugin-log FILE` switched it on.

One line of JSON for each run. Standard error stays silent: some runtimes take it for the reason of a failure.
"""

from posix import O_APPEND, O_CLOEXEC, O_CREAT, O_NOFOLLOW, O_WRONLY, close, open, write
from time import gmtime, strftime

from cni_shim.errors import cut, quote


def note(path: str, environ: dict[bytes, bytes], milliseconds: float, request_id: str, error: bytes) -> None:
    """`error` is the error object that was printed, empty after a success. A log that can't be written is done
    without."""
    words = [
        ("time", strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())),
        ("verb", _variable(environ, b"CNI_COMMAND")),
        ("container", _variable(environ, b"CNI_CONTAINERID")),
        ("ifname", _variable(environ, b"CNI_IFNAME")),
        ("netns", _variable(environ, b"CNI_NETNS")),
        ("request_id", request_id),
    ]
    line = '{%s,"ms":%.2f' % (",".join(['"%s":%s' % (name, quote(value)) for name, value in words]), milliseconds)
    if error:
        line += ',"error":' + error.decode("utf-8", "replace").strip()
    try:
        descriptor = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0o600)
        try:
            write(descriptor, (line + "}\n").encode("utf-8", "replace"))
        finally:
            close(descriptor)
    except OSError:
        pass


def _variable(environ: dict[bytes, bytes], name: bytes) -> str:
    return cut(environ.get(name, b"").decode("utf-8", "replace"))
