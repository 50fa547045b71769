"""The daemon, asked by the plugin: waited for while it restarts, and its refusals and silence in words for CNI."""

from time import monotonic, sleep

from cni_shim import errors, installed, protobuf
from cni_shim.errors import CniError, FinishedError
from cni_shim.grpc_call import CallError, Forbidden, Garbled, Late, Refused, Unreachable, unary

TYPE_CHECKING = False  # as in `typing`, which is not imported
if TYPE_CHECKING:
    from collections.abc import Callable

RELEASE_SECONDS = 3.0  # for the daemon's answer; nobody listening is found out at once
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25  # seconds between attempts to reach the daemon

CNI_ERROR_METADATA = b"ipamd-cni-error"

# gRPC status codes, https://grpc.io/docs/guides/status-codes/
CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE = 1, 3, 4, 8, 14


def insist(
    method: bytes,
    request: "Callable[[], bytes]",
    last: float,
    grace: float = 0.0,
    meanwhile: "Callable[[], object] | None" = None,
) -> bytes:
    """The reply. A daemon that is absent or restarting is waited for until `last`, and each attempt has `grace` more.

    `request` makes the message anew for each attempt. Raises CallError, with `sent` for all of them.
    """
    pause = FIRST_PAUSE
    sent = False
    while True:
        try:
            return unary(installed.SOCKET, method, request(), last + grace, meanwhile)
        except CallError as error:
            failure = error
        again = isinstance(failure, (Unreachable, Refused)) and not is_decided(failure)
        failure.sent = sent = sent or failure.sent
        if not again or monotonic() + pause >= last:
            raise failure
        sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def release_or_spool(
    call: bytes, name: str, deadline: float, strict: bool = False, meanwhile: "Callable[[], None] | None" = None
) -> bool:
    """Give the address back, now or by a file in the spool. Returns whether the daemon took it.

    `strict`: a request that the daemon can't understand is an error (a DEL with a broken configuration).
    `meanwhile` uses the time that the daemon takes.
    """
    request = protobuf.request(call)
    last = min(deadline, monotonic() + RELEASE_SECONDS)
    try:
        unary(installed.SOCKET, b"/ipamd.v1.Ipam/Release", request, last, meanwhile)
        return True
    except CallError as error:
        if isinstance(error, Refused) and error.status == INVALID_ARGUMENT:
            if strict:
                raise refused(error, errors.INVALID_CONFIG) from None
            return True
        failure = error
    from cni_shim import spool

    try:
        spool.leave(installed.SPOOL_DIR, name, request)
    except OSError as error:
        raise CniError(
            errors.IO_FAILURE,
            "the release could neither be sent to ipamd nor kept in %s: %s" % (installed.SPOOL_DIR, error.strerror),
            "%s: %s; DEL has to be repeated" % (installed.SOCKET, failure),
        ) from None
    return False


def ask(method: bytes, call: bytes, deadline: float, code: int) -> bytes:
    """The reply. `code`: of the error if the daemon does not answer."""
    try:
        return unary(installed.SOCKET, method, protobuf.request(call), deadline)
    except Refused as error:
        raise refused(error, code) from None
    except CallError as error:
        raise no_answer(error, code) from None


def is_decided(error: CallError) -> bool:
    """Whether the daemon has refused. gRPC itself makes two of the statuses when a server stops; the daemon's own
    refusals carry an error object."""
    return isinstance(error, Refused) and (
        error.status not in (CANCELLED, UNAVAILABLE) or CNI_ERROR_METADATA in error.metadata
    )


def failed(error: CallError, code: int) -> CniError:
    """Of a call that was insisted on. `code`: if the daemon has not refused in CNI's own terms."""
    if isinstance(error, Refused) and is_decided(error):
        return refused(error, code)
    return no_answer(error, code)


def refused(error: Refused, code: int) -> CniError:
    finished = error.metadata.get(CNI_ERROR_METADATA, b"")
    if finished.startswith(b"{") and finished.endswith(b"}"):
        return FinishedError(finished)
    if error.status in (CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE):
        return CniError(code, "ipamd: " + (str(error) or "no reason given"), "gRPC status %d" % error.status)
    return misbehaved("gRPC status %d: %s" % (error.status, error))


def misbehaved(what: str) -> CniError:
    return CniError(
        errors.DAEMON_MISBEHAVED,
        "the daemon's answer can't be used: " + what,
        "is %s the socket of ipamd, in the version that installed this plugin? %s renews it"
        % (installed.SOCKET, "The DaemonSet's next pod" if installed.DAEMON_SET else "`ipamd install`"),
    )


def no_answer(error: CallError, code: int) -> CniError:
    if isinstance(error, Garbled):
        return misbehaved(str(error))
    if isinstance(error, Forbidden):
        remedy = "the plugin has to run as root, as the daemon does"
    elif isinstance(error, Late):
        where = "that of the DaemonSet's pod on this node" if installed.DAEMON_SET else "journalctl -u ipamd"
        remedy = "the daemon is there but does not answer: look at its log (%s)" % where
    else:
        remedy = (
            "does the DaemonSet's pod run on this node (kubectl get pods -A -o wide -l app.kubernetes.io/name=ipamd)"
            if installed.DAEMON_SET
            else "is ipamd running (systemctl status ipamd)"
        ) + ", with this socket in its configuration (api.socket)?"
    return CniError(code, "no answer from ipamd at %s: %s" % (installed.SOCKET, error), remedy)
