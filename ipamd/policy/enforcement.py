"""Tells the agent of each pod, in the order in which the pods of one name come and go.

The agent keeps its filters by the pod's name alone. When it hears of a name that it knows, it attaches nothing and
reports success, also when another pod has the name by now. Once it hears that a name is gone, it attaches nothing to
a pod of that name until it hears of the name again. So each pod is announced by two calls: one ends the pod that had
its name before, one names it. A call that failed stays owed.

In the standard mode pods do not depend on the agent: an ADD waits for it a moment, and not at all while it is known
not to answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final, Literal
from weakref import WeakValueDictionary

import structlog

from ipamd.host import HostError
from ipamd.host.altnames import give
from ipamd.host.veth import host_link
from ipamd.policy.agent import Agent, AgentFailed
from ipamd.policy.errors import NotEnforced
from ipamd.policy.pods import Pod, pod_of
from ipamd.pool.model import Attachment, AttachmentKey
from ipamd.telemetry.conditions import Conditions

log = structlog.get_logger("ipamd.policy")

NOT_ENFORCED = "policy.not_enforced"

# Seconds that an ADD waits in the standard mode, and that the agent has for one pod.
STANDARD_WAIT, ONE_POD = 1.0, 30.0
# Seconds from the start until the agent is missed, as it asks the daemon before it listens; then between two looks at
# it, while all is well and while not; and between tries for an ADD of the strict mode.
FIRST_LOOK, LOOK, LOOK_AGAIN, PAUSE = 60.0, 30.0, 3.0, 0.25

# Pods that ended while the agent was absent. It hears of the others when their name comes again.
MOST_GONE = 1000

Mode = Literal["standard", "strict"]


class Enforcement:
    """For the thread of the event loop alone."""

    def __init__(self, mode: Mode, agent: Agent, conditions: Conditions) -> None:
        self.mode: Final = mode
        self._agent = agent
        self._conditions = conditions
        self._pods: dict[AttachmentKey, Pod] = {}
        self._holders: dict[Pod, AttachmentKey] = {}
        # Calls that the agent must still get: the attachment that is the pod now; None: the pod is gone.
        self._owed: dict[Pod, AttachmentKey | None] = {}
        self._turns: WeakValueDictionary[Pod, asyncio.Lock] = WeakValueDictionary()
        self._telling: set[asyncio.Task[str]] = set()
        self._away = False
        self._stopping = False

    def restore(self, held: Iterable[Attachment], gone: Iterable[Attachment]) -> None:
        """At start: those that are there, whom the agent knows already, and those whose DEL came meanwhile."""
        for attachment in gone:
            if (pod := pod_of(attachment)) is not None:
                self._owe_end(pod)
        for attachment in sorted(held, key=lambda each: each.since):
            if (pod := pod_of(attachment)) is not None:
                self._hold(pod, attachment.key)
                self._owed.pop(pod, None)

    async def name_links(self) -> None:
        """Of the pods that are there: some may have started before `policy.mode` was set."""
        for pod, key in list(self._holders.items()):
            try:
                await asyncio.to_thread(give, host_link(key), pod.link)
            except HostError as error:
                log.warning("policy.link_unnamed", pod=str(pod), error=str(error))

    def concerns(self, attachment: Attachment) -> bool:
        return pod_of(attachment) is not None

    async def enforce(self, attachment: Attachment, patience: float) -> None:
        """Its link is up. `patience`: seconds that the caller can wait. Raises `NotEnforced` in the strict mode."""
        pod, key = pod_of(attachment), attachment.key
        if pod is None:
            return
        self._hold(pod, key)
        self._owed[pod] = key
        if self.mode == "standard":
            if not self._away:
                await asyncio.wait((self._tell(pod),), timeout=min(patience, STANDARD_WAIT))
            return
        end = time.monotonic() + patience
        failure = f"{self._agent.socket}: no answer in time"
        while True:
            telling = self._tell(pod)
            await asyncio.wait((telling,), timeout=max(end - time.monotonic(), 0.0))
            if self._stopping:
                raise NotEnforced("the daemon is stopping", stopping=True)
            if telling.done() and not (failure := telling.result()):
                return
            if time.monotonic() + PAUSE >= end or self._holders.get(pod) != key:
                raise NotEnforced(f"the network policies of pod {pod} are not in force: {failure}")
            await asyncio.sleep(PAUSE)

    def dropped(self, key: AttachmentKey) -> None:
        """The attachment holds no address any more. One that came after it under the pod's name is left alone."""
        pod = self._pods.pop(key, None)
        if pod is None or self._holders.get(pod) != key:
            return
        del self._holders[pod]
        self._owe_end(pod)
        if not self._away:
            self._tell(pod)

    async def follow(self) -> None:
        """Look after the agent, and tell it what is owed, until cancelled."""
        await self.name_links()
        await asyncio.sleep(FIRST_LOOK)
        while True:
            await self.look()
            await asyncio.sleep(LOOK_AGAIN if self._owed or self._away else LOOK)

    async def look(self) -> None:
        """Whether the agent answers; then make the calls that are owed."""
        try:
            await self._agent.check()
        except AgentFailed as error:
            self._failed(str(error), away=True)
            return
        self._away = False
        for pod in list(self._owed):
            await self._tell(pod)
        self._well()

    async def close(self) -> None:
        """Callers that still wait learn that the daemon stops."""
        self._stopping = True
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)
        await self._agent.close()

    def _tell(self, pod: Pod) -> asyncio.Task[str]:
        """Its result is why the agent has not heard of the pod; empty when it has. The agent ends what it has begun,
        whether somebody waits or not, and so does this."""
        task = asyncio.get_running_loop().create_task(self._settle_in_time(pod))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        return task

    async def _settle_in_time(self, pod: Pod) -> str:
        try:
            async with asyncio.timeout(ONE_POD):
                await self._settle(pod)
        except TimeoutError:
            return self._failed(f"{self._agent.socket}: no answer within {ONE_POD:g} s", away=True)
        except AgentFailed as error:
            return self._failed(str(error), away=error.away)
        except HostError as error:
            return self._failed(str(error), away=False)
        self._away = False
        self._well()
        return ""

    async def _settle(self, pod: Pod) -> None:
        """Raises `AgentFailed` and `HostError`."""
        turn = self._turns.get(pod)
        if turn is None:
            turn = self._turns[pod] = asyncio.Lock()
        async with turn:
            if pod not in self._owed:
                return
            key = self._owed[pod]
            if key is not None:
                # In a thread: the kernel may be busy with others' links.
                await asyncio.to_thread(give, host_link(key), pod.link)
            await self._agent.forget(pod)
            if key is not None:
                await self._agent.enforce(pod, self.mode)
            if self._owed.get(pod) == key:
                self._owed.pop(pod, None)

    def _hold(self, pod: Pod, key: AttachmentKey) -> None:
        self._pods[key] = pod
        self._holders[pod] = key

    def _owe_end(self, pod: Pod) -> None:
        self._owed[pod] = None
        gone = [each for each, key in self._owed.items() if key is None]
        if len(gone) > MOST_GONE:
            del self._owed[gone[0]]

    def _well(self) -> None:
        if not self._owed:
            self._conditions.end(NOT_ENFORCED)

    def _failed(self, failure: str, *, away: bool) -> str:
        self._away = self._away or away
        if self.mode == "strict":
            meaning = "A pod without its policies does not start (policy.mode is strict)"
        else:
            meaning = "Pods start all the same, and their policies come into force once it does"
        self._conditions.begin(
            NOT_ENFORCED,
            f"AWS's network policy agent does not put policies in force: {failure}. {meaning}. Start it on this "
            'node, or set policy.mode = "off" where another engine or none does that.',
            error=failure,
        )
        return failure
