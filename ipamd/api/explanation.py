"""Finds the object that an explanation is about, and adds what the pool can't know: the node's rate budget, the
kernel, and past events.
"""

from __future__ import annotations

from collections.abc import Mapping

from ipamd.cloud.budget import RateBudget
from ipamd.host import HostError, HostNetwork, Reconciler
from ipamd.host.veth import host_link
from ipamd.pool.explain import Explanation
from ipamd.pool.model import Attachment, AttachmentKey, Owner
from ipamd.pool.view import WaitingView
from ipamd.pool.words import span
from ipamd.shell.turn import PoolRunner
from ipamd.telemetry.history import KEPT, Event, History

# Events about one attachment, and the state that follows from each.
ENDS = {"attachment.refused": "refused", "attachment.released": "released", "attachment.collected": "released"}

# Former holders of an address that are named, the latest first.
_HOLDERS = 5


class Explainer:
    def __init__(
        self,
        runner: PoolRunner,
        reconciler: Reconciler,
        network: HostNetwork,
        budget: RateBudget,
        history: History,
    ) -> None:
        self._runner = runner
        self._view = runner.view
        self._reconciler = reconciler
        self._network = network
        self._budget = budget
        self._history = history

    def pool(self) -> Explanation:
        explanation = self._view.explain_pool(self._runner.clock(), str(self._runner.unrecorded or ""))
        explanation.because += self._in_the_budget()
        if broken := self._reconciler.health().error:
            explanation.because.append(f"This node's network is not in order: {broken}.")
            explanation.advice.append("ipamctl doctor looks for what is in the way.")
        return explanation

    async def pods(self, named: str) -> list[Explanation]:
        """One explanation for each interface that fits the name: waiting ones first, then attached ones. If there is
        none, the outcome of the last one. Empty if nothing is known."""
        now = self._runner.clock()
        waiting = [w for w in self._view.waiting(now) if fits(named, w.key, w.owner)]
        attached = [
            a
            for a in self._view.attachments()
            if named in (a.address, host_link(a.key)) or fits(named, a.key, a.owner)
        ]
        found = [self._waiting(each, now) for each in waiting]
        found += [await self._attached(each, now) for each in attached]
        return found or [self._ended(event, named) for event in self._last_of(named)]

    async def address(self, ip: str) -> list[Explanation]:
        """The holder of the address, or its state on this node, and its former holders. Empty if nothing is known."""
        found = [
            await self._attached(attachment, self._runner.clock())
            for attachment in self._view.attachments()
            if attachment.address == ip
        ]
        if not found and (explanation := self._view.explain_address(ip, self._runner.clock())) is not None:
            found.append(explanation)
        before = [self._held(event) for event in self._history.last(KEPT) if _gave_up(event, ip)]
        if not found and before:
            found.append(Explanation("gone", f"No ENI of this node has {ip} now."))
        for explanation in found:
            explanation.because += before[:-_HOLDERS:-1]
        return found

    def _held(self, event: Event) -> str:
        pod, container = _subject(event.fields)
        return f"Before, {pod or f'container {container[:12]}'} had it until {self._ago(event)} ago."

    def _waiting(self, waiting: WaitingView, now: float) -> Explanation:
        explanation = self._view.explain_waiting(waiting.request, who(waiting.key, waiting.owner), now)
        explanation.because += self._in_the_budget()
        if refusals := self._refusals(waiting.owner):
            last = refusals[-1]
            times = "once" if len(refusals) == 1 else f"{len(refusals)} times"
            explanation.because.append(
                f"It was refused {times} before, the last time {self._ago(last)} ago: {last.fields['message']}."
            )
        return explanation

    async def _attached(self, attachment: Attachment, now: float) -> Explanation:
        explanation = self._view.explain_attachment(attachment, who(attachment.key, attachment.owner), now)
        link = host_link(attachment.key)
        try:
            via = (await self._network.pod_routes()).get(attachment.address)
        except HostError as error:
            explanation.because.append(f"The kernel's routes can't be read: {error}.")
        else:
            if via == link:
                explanation.because.append(f"The host's route to it leads to {link}, as it should.")
            else:
                found = f"leads to {via}" if via else "is missing"
                explanation.because.append(f"But the host's route to it {found}, where {link} is expected.")
                explanation.advice.append("ipamctl audit shows what else differs; delete the pod if it lasts.")
        for event in self._history.last(KEPT):
            fields = event.fields
            if event.name == "attachment.granted" and fields["ip"] == attachment.address:
                explanation.numbers["waited_ms"] = fields["waited_ms"]
        return explanation

    def _ended(self, event: Event, named: str) -> Explanation:
        state, fields = ENDS[event.name], event.fields
        if state == "refused":
            explanation = Explanation(
                state, f"{named} was refused {self._ago(event)} ago: {fields['reason']}.", [f"{fields['message']}."]
            )
            explanation.because.append(f"It had waited {span(float(fields['waited_ms']) / 1000)}.")
            explanation.next.append("The runtime tries again by itself, with a new sandbox; nothing waits here now.")
            explanation.advice.append("ipamctl explain pool says how the pool is now.")
            return explanation
        why = "its container was gone" if event.name == "attachment.collected" else "its runtime asked for it"
        if fields.get("by") == "operator":
            why = "an operator asked for it (ipamctl release)"
        headline = f"{named} had {fields.get('ip', 'an address')} until {self._ago(event)} ago."
        return Explanation(state, headline, [f"It was released because {why}."])

    def _last_of(self, named: str) -> list[Event]:
        fitting = [e for e in self._history.last(KEPT) if e.name in ENDS and _named_in(named, e.fields)]
        return fitting[-1:]

    def _refusals(self, owner: Owner) -> list[Event]:
        pod = f"{owner.pod_namespace}/{owner.pod_name}"
        return [
            event
            for event in self._history.last(KEPT, "warning")
            if owner.pod_name and event.name == "attachment.refused" and event.fields.get("pod") == pod
        ]

    def _ago(self, event: Event) -> str:
        return span(self._runner.clock() - event.at)

    def _in_the_budget(self) -> list[str]:
        """Calls that the pool has asked for and that still wait in the rate budget."""
        return [
            f"{bucket.action}: {waiting} call{' waits' if waiting == 1 else 's wait'} in this node's own rate "
            f"budget, {bucket.rate:.2g} a second"
            + (f" (EC2 has throttled it {bucket.throttled} times)." if bucket.throttled else ".")
            for bucket in self._budget.view()
            if (waiting := sum(bucket.waiting.values()))
        ]


def _gave_up(event: Event, ip: str) -> bool:
    return event.name in ("attachment.released", "attachment.collected") and event.fields.get("ip") == ip


def who(key: AttachmentKey, owner: Owner) -> str:
    what = f"Pod {owner.pod_namespace}/{owner.pod_name}" if owner.pod_name else f"Container {key.container_id[:12]}"
    return f"{what} ({key.ifname})"


def fits(named: str, key: AttachmentKey, owner: Owner) -> bool:
    if owner.pod_name and named in (owner.pod_name, f"{owner.pod_namespace}/{owner.pod_name}"):
        return True
    return key.container_id.startswith(named)


def _subject(fields: Mapping[str, object]) -> tuple[str, str]:
    """The pod (namespace/name) and the beginning of the container id that an event is about; either may be empty. An
    event has them as `pod` and `container`, or as `key`: network/id/interface."""
    pod, container = str(fields.get("pod", "")), str(fields.get("container", ""))
    if not container and len(parts := str(fields.get("key", "")).split("/")) == 3:
        container = parts[1]
    return pod, container


def _named_in(named: str, fields: Mapping[str, object]) -> bool:
    pod, container = _subject(fields)
    if pod and named in (pod, pod.partition("/")[2]):
        return True
    return bool(container) and (container.startswith(named) or named.startswith(container))
