"""Who may call what: the two sockets share services, timing and an event loop, and no authority."""

from __future__ import annotations

import asyncio
import grp
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from ipamd.api.server import ApiServer, Services
from ipamd.api.timing import CallTimes
from ipamd.api.v1 import administration_pb2, introspection_pb2, ipam_pb2
from ipamd.process.supervision import Unserved
from ipamd.settings import ApiSettings

FILES = (ipam_pb2, administration_pb2, introspection_pb2, health_pb2, reflection_pb2)
SERVICES = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
METHODS = [method for service in SERVICES for method in service.methods]
READABLE = {
    introspection_pb2.DESCRIPTOR.services_by_name["Introspection"],
    *health_pb2.DESCRIPTOR.services_by_name.values(),
}


@pytest.fixture
def settings(tmp_path: Path) -> ApiSettings:
    group = grp.getgrgid(os.getgid()).gr_name
    return ApiSettings(socket=tmp_path / "root.sock", read_socket=tmp_path / "read.sock", read_group=group)


def test_the_read_socket_has_no_method_that_root_called_before(settings: ApiSettings) -> None:
    on_root, on_read = asyncio.run(_call_all(settings, settings.socket, settings.read_socket))
    assert {name for name, code in on_root.items() if code is grpc.StatusCode.UNIMPLEMENTED} == set()
    may = {method.full_name for method in METHODS if method.containing_service in READABLE}
    assert {name for name, code in on_read.items() if code is not grpc.StatusCode.UNIMPLEMENTED} == may


def test_calls_of_both_sockets_are_timed_by_method_and_outcome(settings: ApiSettings) -> None:
    times = CallTimes()
    asyncio.run(_call_all(settings, settings.socket, settings.read_socket, times=times))
    assert times.times["Introspection/GetNode", "OK"].count == 2
    assert times.times["Ipam/Allocate", "OK"].count == 1


async def _call_all(
    settings: ApiSettings, *sockets: Path, times: CallTimes | None = None
) -> list[dict[str, grpc.StatusCode]]:
    """By method, the outcome of a call with an empty request: of every method, one socket after the other."""
    ipam, introspection, administration = (_Service(SERVICES[index]) for index in (0, 2, 1))
    server = ApiServer(settings, times or CallTimes())
    server.use(Services(ipam, introspection, administration))  # type: ignore[arg-type]
    await server.start()
    served = asyncio.Event()
    readers = asyncio.create_task(server.serve_readers(served.set))
    await served.wait()
    try:
        outcomes = []
        for socket in sockets:
            async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
                outcomes.append({method.full_name: await _call(channel, method) for method in METHODS})
        return outcomes
    finally:
        readers.cancel()
        await asyncio.gather(readers, return_exceptions=True)
        await server.stop(0)


async def _call(channel: Any, method: MethodDescriptor) -> grpc.StatusCode:
    """Of a stream the first reply decides."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if not method.server_streaming:
            await channel.unary_unary(path)(b"")
        elif method.client_streaming:
            await anext(aiter(channel.stream_stream(path)(iter([b""]))))
        else:
            await anext(aiter(channel.unary_stream(path)(b"")))
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


WITHOUT_CHOWN = """
import asyncio, sys
from pathlib import Path
from ipamd.api.server import ApiServer
from ipamd.api.timing import CallTimes
from ipamd.process.supervision import Unserved
from ipamd.settings import ApiSettings

async def main():
    path = Path(sys.argv[1])
    settings = ApiSettings(socket=path / "s", read_socket=path / "read" / "s", read_group="nogroup")
    server = ApiServer(settings, CallTimes())
    served = asyncio.Event()
    task = asyncio.ensure_future(server.serve_readers(served.set))
    await asyncio.wait((task, asyncio.ensure_future(served.wait())), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        try:
            task.result()
        except Unserved as error:
            print(error)
    else:
        found = (path / "read" / "s").stat()
        print(found.st_gid, oct(found.st_mode & 0o777))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await server.stop(0)

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have less than root")
@pytest.mark.parametrize("mode", [0o2750, 0o750], ids=["of the group", "of root"])
def test_folder_gives_group_its_socket_where_daemon_may_not(tmp_path: Path, mode: int) -> None:
    group = grp.getgrnam("nogroup").gr_gid
    (tmp_path / "read").mkdir()
    os.chown(tmp_path / "read", 0, group)
    (tmp_path / "read").chmod(mode)
    command = ["setpriv", "--bounding-set=-chown", "--inh-caps=-chown", "--clear-groups"]
    run = subprocess.run(
        [*command, sys.executable, "-c", WITHOUT_CHOWN, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    if mode & 0o2000:
        assert run.stdout == f"{group} 0o660\n", run.stderr
    else:
        assert "can't be given to the group nogroup" in run.stdout, run.stderr
    assert "never awaited" not in run.stderr and "Traceback" not in run.stderr


class _Service:
    """Every method of a service, answering with an empty reply."""

    def __init__(self, service: ServiceDescriptor) -> None:
        for method in service.methods:
            setattr(self, method.name, _stream(method) if method.server_streaming else _single(method))


def _single(method: MethodDescriptor) -> Callable[[Any, Any], Any]:
    async def answer(request: Any, context: Any) -> Any:
        return GetMessageClass(method.output_type)()

    return answer


def _stream(method: MethodDescriptor) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        yield GetMessageClass(method.output_type)()

    return answer


async def _answers(socket: Path) -> bool:
    """Whether health answers there, within a while."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        return isinstance(await check(b"", wait_for_ready=True, timeout=20), bytes)


async def test_a_socket_that_somebody_removed_is_served_again(
    settings: ApiSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipamd.api.listening.LOOK", 0.01)
    server = ApiServer(settings, CallTimes())
    await server.start()
    tasks = [asyncio.create_task(keep(lambda: None)) for keep in (server.keep_served, server.serve_readers)]
    try:
        for socket in (settings.socket, settings.read_socket):
            assert await _answers(socket)
            socket.unlink()
            assert await _answers(socket)
        settings.socket.unlink()
        settings.socket.parent.joinpath("other").touch()
        settings.socket.parent.joinpath("other").rename(settings.socket)
        async with asyncio.timeout(20):
            with pytest.raises(Unserved, match="is no socket: remove it"):
                await tasks[0]
        settings.socket.unlink()
        tasks[0] = asyncio.create_task(server.keep_served(lambda: None))
        assert await _answers(settings.socket)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop(0)
    assert not settings.socket.exists()
