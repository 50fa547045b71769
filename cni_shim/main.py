"""The verbs of CNI: what the plugin does for each, in which order, and how it fails.

CNI specification 1.1.0, section 2 (execution protocol): parameters in CNI_* variables, configuration on standard
input, the result or an error object on standard output, exit status 0 or 1.
"""

import _signal  # type: ignore[import-not-found] # typeshed has no stub for it; `signal` would import enum
import posix
from time import monotonic

from cni_shim import daemon, errors, installed, protobuf
from cni_shim.errors import CniError
from cni_shim.grpc_call import CallError, unary
from cni_shim.names import host_ifname

TYPE_CHECKING = False  # as in `typing`, which is not imported
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from cni_shim.netlink import Socket

STDIN_SECONDS = 10.0
LARGEST_CONFIG = 3 << 20  # the daemon takes messages of 4 MiB
UNDO_SECONDS = 3.0  # kept back from the time of an ADD, to plumb or to undo...
ANSWER_SECONDS = 1.0  # ...this part of it for the daemon to say that its time was over
DELETE_SECONDS = 5.0
POLICY_SECONDS = 3.0  # in the standard mode, for a daemon that waits one second for a policy engine
TURN_SECONDS = 1.0  # a DEL's wait for an ADD that is plumbing (milliseconds); one that waits for an address it ends
ASK_SECONDS = 5.0  # CHECK
STATUS_SECONDS = 2.0  # a runtime asks for it within its own status, every few seconds
COLLECT_SECONDS = 30.0

SUPPORTED_VERSIONS = b'["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]'


class Invocation:
    """What the runtime gave: the CNI_* variables and the configuration, all of it unparsed."""

    def __init__(self, environ: dict[bytes, bytes], config: bytes) -> None:
        self.environ = environ
        self.config = config

    def variable(self, name: str, required: bool) -> bytes:
        value = self.environ.get(name.encode(), b"")
        if required and not value:
            raise CniError(
                errors.INVALID_ENVIRONMENT, name + " is not set", "a container runtime sets it for each call"
            )
        try:
            value.decode()
        except UnicodeDecodeError:
            raise CniError(errors.INVALID_ENVIRONMENT, name + " is not valid UTF-8") from None
        return value

    def call(self, container: bool, netns: bool) -> bytes:
        """The message CniCall. `container`, `netns`: whether the verb needs a container, and its namespace."""
        if not self.config.strip().startswith(b"{"):
            raise CniError(
                errors.UNDECODABLE,
                "the network configuration is not a JSON object",
                "it has to arrive on standard input; the runtime or its network configuration file is at fault",
            )
        return protobuf.cni_call(
            self.variable("CNI_CONTAINERID", container),
            self.variable("CNI_IFNAME", container),
            self.variable("CNI_NETNS", netns),
            self.variable("CNI_ARGS", False),
            self.variable("CNI_PATH", False),
            self.config,
        )

    def host_ifname(self) -> str:
        return host_ifname(
            self.variable("CNI_CONTAINERID", True).decode(), self.variable("CNI_IFNAME", True).decode()
        )


def add(invocation: Invocation, deadline: float) -> str:
    """Returns the id under which the daemon logged the request."""
    from cni_shim import namespace
    from cni_shim.turn import begin_add

    call = invocation.call(container=True, netns=True)
    name = invocation.host_ifname()
    netns = namespace.open_netns(invocation.variable("CNI_NETNS", True))
    turn = begin_add(_folder(), name, deadline - UNDO_SECONDS)
    reply = _allocate(call, name, deadline)
    from cni_shim import netlink, plumbing

    try:
        plan = protobuf.Plan(reply)
        # What is there by that name may be replaced, and what is undone is removed by it.
        if plan.host_ifname != name.encode() or plan.ifname != invocation.variable("CNI_IFNAME", True):
            raise protobuf.DecodeError("the plan is for other interfaces than were asked for")
        host = netlink.Socket()
    except (protobuf.DecodeError, OSError) as error:
        daemon.release_or_spool(call, name, deadline)
        if isinstance(error, OSError):
            raise CniError(errors.KERNEL_REFUSED, "open a netlink socket: %s" % error.strerror) from None
        raise daemon.misbehaved(str(error)) from None
    try:
        turn.give_up_if_overtaken()
        result = plumbing.attach(host, plan, netns)
        if plan.policy:
            _enforce(call, plan.policy == protobuf.POLICY_STRICT, deadline - UNDO_SECONDS)
        turn.give_up_if_overtaken()
        _print(result + b"\n")
    except BaseException as error:
        undone = _undo(host, plan.host_ifname, call, deadline)
        undone += "; request_id=" + plan.request_id.decode("utf-8", "replace")
        if isinstance(error, netlink.NetlinkError):
            raise CniError(errors.KERNEL_REFUSED, str(error), undone) from None
        if isinstance(error, CniError):
            error.details = "%s; %s" % (error.details, undone)
        raise
    return plan.request_id.decode("utf-8", "replace")


def _folder() -> str:
    """Who reaches the daemon by its socket finds the other runs there."""
    return installed.SOCKET.rpartition("/")[0]


def _allocate(call: bytes, name: str, deadline: float) -> bytes:
    """The reply to Allocate.

    The daemon is given less time than the call, so that its reason arrives, and the call less than there is, so that
    a grant whose answer was lost can be given back.
    """
    last = deadline - UNDO_SECONDS

    def request() -> bytes:
        return protobuf.allocate_request(call, max(int((last - monotonic()) * 1000), 1))

    try:
        return daemon.insist(b"/ipamd.v1.Ipam/Allocate", request, last, ANSWER_SECONDS, _import_the_rest)
    except CallError as error:
        if error.sent and not daemon.is_decided(error):
            daemon.release_or_spool(call, name, deadline)
        raise daemon.failed(error, errors.TRY_AGAIN_LATER) from None


def _enforce(call: bytes, strict: bool, last: float) -> None:
    """Have the pod's network policies enforced before its runtime learns that its network is there. Raises CniError
    if they are not, and they have to be (`strict`)."""
    method = b"/ipamd.v1.Ipam/Enforce"
    try:
        if strict:
            daemon.insist(method, lambda: protobuf.request(call), last)
        else:
            unary(installed.SOCKET, method, protobuf.request(call), min(last, monotonic() + POLICY_SECONDS))
    except CallError as error:
        if strict:
            raise daemon.failed(error, errors.TRY_AGAIN_LATER) from None


def _import_the_rest() -> None:
    """What an ADD needs once it has its plan: loaded while the daemon is at work, not after."""
    from cni_shim import namespace, plumbing  # noqa: F401

    namespace.find_setns()


def _undo(host: "Socket", host_ifname: bytes, call: bytes, deadline: float) -> str:
    """Take a half-built pair down and give the address back; what came of it, in words."""
    from cni_shim import netlink, plumbing

    try:
        plumbing.detach(host, host_ifname)
    except netlink.NetlinkError as error:  # what still exists keeps its address
        return "%s; the address stays reserved until DEL" % error
    try:
        daemon.release_or_spool(call, host_ifname.decode("utf-8", "replace"), deadline)
    except CniError as error:
        return error.message
    return "what had been made was removed again and the address released"


def delete(invocation: Invocation, deadline: float) -> None:
    from cni_shim import netlink, plumbing
    from cni_shim.turn import begin_del

    call = invocation.call(container=True, netns=False)
    name = invocation.host_ifname()
    netns = invocation.variable("CNI_NETNS", False)
    begin_del(_folder(), name, monotonic() + TURN_SECONDS)
    freed = False
    try:
        host = netlink.Socket()
        plumbing.discard(host, name.encode())

        def free() -> None:
            nonlocal freed
            freed = plumbing.free_name(host, name.encode(), netns)

        # The pair is deleted by the daemon, or here where nobody else does it or the name can't be freed without.
        told = daemon.release_or_spool(call, name, deadline, strict=True, meanwhile=free)
        if not (told and freed):
            plumbing.detach(host, name.encode())
    except netlink.NetlinkError as error:
        raise CniError(
            errors.KERNEL_REFUSED, str(error), "the address stays reserved; DEL has to be repeated"
        ) from None


def check(invocation: Invocation, deadline: float) -> None:
    from cni_shim import inspection, namespace, netlink

    call = invocation.call(container=True, netns=True)
    netns = namespace.open_netns(invocation.variable("CNI_NETNS", True))
    reply = daemon.ask(b"/ipamd.v1.Ipam/Check", call, deadline, errors.TRY_AGAIN_LATER)
    namespace.enter(netns)
    try:
        address, gateway = protobuf.checked(reply)
        inspection.check_interface(invocation.variable("CNI_IFNAME", True), address, gateway)
    except netlink.NetlinkError as error:
        raise CniError(errors.KERNEL_REFUSED, str(error)) from None
    except protobuf.DecodeError as error:
        raise daemon.misbehaved(str(error)) from None


def status(invocation: Invocation, deadline: float) -> None:
    """A node that serves needs no daemon to say so. The daemon is asked why one does not, and about a configuration
    whose version the plugin does not know."""
    from cni_shim import served

    call = invocation.call(container=False, netns=False)
    known = b'"%s"' % errors.version_of(invocation.config).encode() in SUPPORTED_VERSIONS
    if not (known and served.since_boot(installed.SOCKET)):
        daemon.ask(b"/ipamd.v1.Ipam/Ready", call, deadline, errors.NOT_AVAILABLE)


def collect(invocation: Invocation, deadline: float) -> None:
    call = invocation.call(container=False, netns=False)
    daemon.ask(b"/ipamd.v1.Ipam/Collect", call, deadline, errors.TRY_AGAIN_LATER)


def version(invocation: Invocation, deadline: float) -> None:
    chosen = errors.version_of(invocation.config).encode()
    _print(b'{"cniVersion":"%s","supportedVersions":%s}\n' % (chosen, SUPPORTED_VERSIONS))


# Each with the seconds that it may take. Settings of the node are read when they are needed, so that the static
# executable can hold this module as it is after its import.
VERBS: "dict[bytes, tuple[Callable[[Invocation, float], str | None], float | None]]" = {
    b"ADD": (add, None),  # installed.ADD_SECONDS
    b"DEL": (delete, DELETE_SECONDS),
    b"CHECK": (check, ASK_SECONDS),
    b"GC": (collect, COLLECT_SECONDS),
    b"STATUS": (status, STATUS_SECONDS),
    b"VERSION": (version, STATUS_SECONDS),
}


def _read_config() -> bytes:
    """All of standard input. Raises CniError when it does not end, or not soon."""

    def interrupt(number: int, frame: object) -> None:
        raise TimeoutError

    _signal.signal(_signal.SIGALRM, interrupt)
    _signal.setitimer(_signal.ITIMER_REAL, STDIN_SECONDS)
    config = b""
    try:
        while data := posix.read(0, 65536):
            config += data
            if len(config) > LARGEST_CONFIG:
                raise CniError(errors.INVALID_CONFIG, "the network configuration is larger than 3 MiB")
    except TimeoutError:
        raise CniError(
            errors.IO_FAILURE,
            "standard input did not end within %d s" % STDIN_SECONDS,
            "the runtime has to close it after the network configuration",
        ) from None
    except OSError as error:
        raise CniError(errors.IO_FAILURE, "standard input can't be read: %s" % error.strerror) from None
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
    return config


def _print(text: bytes) -> None:
    while text:
        text = text[posix.write(1, text) :]


def main() -> "NoReturn":
    started = monotonic()
    config = b""
    try:
        command = posix.environ.get(b"CNI_COMMAND", b"")
        if command not in VERBS:
            raise CniError(
                errors.INVALID_ENVIRONMENT,
                "CNI_COMMAND is %s" % (repr(command)[1:] if command else "not set"),
                "this is a CNI plugin: a container runtime runs it with ADD, DEL, CHECK, GC, STATUS or VERSION",
            )
        config = _read_config()
        verb, seconds = VERBS[command]
        deadline = started + (installed.ADD_SECONDS if seconds is None else seconds)
        request_id = verb(Invocation(posix.environ, config), deadline)
        if installed.LOG:
            _log(started, request_id or "", b"")
        posix._exit(0)
    except CniError as error:
        failure = error
    except BaseException as error:  # a defect must not end in a traceback, which no runtime can show
        failure = CniError(errors.INTERNAL, "the plugin failed: %s: %s" % (type(error).__name__, error))
    text = failure.render(errors.version_of(config))
    try:
        _print(text)
    except OSError:
        pass  # nobody reads
    if installed.LOG:
        _log(started, "", text)
    posix._exit(1)


def _log(started: float, request_id: str, error: bytes) -> None:
    from cni_shim import journal

    journal.note(installed.LOG, posix.environ, (monotonic() - started) * 1000, request_id, error)
