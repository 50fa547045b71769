"""The container's network namespace: checked before anything is asked for, entered once there is work to do."""

import posix
from fcntl import ioctl
from posix import O_CLOEXEC, O_NONBLOCK, O_RDONLY, RTLD_NOW, close, open, stat

from cni_shim.errors import INVALID_ENVIRONMENT, KERNEL_REFUSED, UNKNOWN_CONTAINER, CniError

TYPE_CHECKING = False  # as in `typing`, which is not imported
if TYPE_CHECKING:
    from collections.abc import Callable

CLONE_NEWNET = 0x40000000  # linux/sched.h
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h


def open_netns(path: bytes) -> int:
    """A descriptor of the container's network namespace. Raises CniError for what is not another namespace."""
    shown = path.decode("utf-8", "replace")
    if not shown.isprintable():  # runtimes show the message as it is
        raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS can't be a path: it holds characters that do not print")
    own = stat("/proc/self/ns/net")
    try:
        given = stat(path)
        # The kernel keeps all namespaces on one file system of its own; to open a device may do something.
        descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) if given.st_dev == own.st_dev else -1
    except OSError as error:
        raise CniError(
            UNKNOWN_CONTAINER,
            "network namespace %s: %s" % (shown, error.strerror),
            "CNI_NETNS has to name the network namespace of a running container; create the container again",
        ) from None
    except ValueError as error:  # a zero in it
        raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS can't be a path: %s" % error) from None
    if descriptor < 0:
        problem = "%s is not a network namespace" % shown
    elif given.st_ino == own.st_ino:
        problem = "%s is the host's own network namespace" % shown
    elif not _is_of_network(descriptor):
        problem = "%s is a namespace of another kind" % shown
    else:
        return descriptor
    if descriptor >= 0:
        close(descriptor)
    raise CniError(INVALID_ENVIRONMENT, problem, "CNI_NETNS has to name the network namespace of the container")


def _is_of_network(descriptor: int) -> bool:
    """`descriptor`: of a namespace. Kernels before 4.11 can't tell."""
    try:
        return ioctl(descriptor, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return True


def find_netns(path: bytes) -> int:
    """The same for a DEL: -1 when there is no such namespace any more, or none was named."""
    if not path:
        return -1
    try:
        return open_netns(path)
    except CniError:
        return -1


def find_setns() -> "Callable[[int, int], int | None]":
    """setns(2): in `posix` since Python 3.12, before that in the C library.

    `ctypes` would take 4 ms to import; `_ctypes` alone takes half of one.
    """
    if hasattr(posix, "setns"):
        return posix.setns  # type: ignore[no-any-return]
    from _ctypes import call_function, dlopen, dlsym

    function = dlsym(dlopen(None, RTLD_NOW), "setns")  # type: ignore[arg-type] # None: what is loaded already
    return lambda descriptor, kind: call_function(function, (descriptor, kind))


def enter(descriptor: int) -> None:
    """Move the process into the namespace, for good. Raises CniError."""
    try:
        failed = find_setns()(descriptor, CLONE_NEWNET)
    except OSError:
        failed = 1
    if failed:
        raise CniError(
            KERNEL_REFUSED,
            "the container's network namespace can't be entered",
            "the plugin has to run as root with CAP_SYS_ADMIN",
        )
