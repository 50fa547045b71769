"""EC2 in virtual time keeps EC2's rules."""

from __future__ import annotations

from random import Random

import pytest

from ipamd.cloud.port import CloudError
from ipamd.pool.model import CloudErrorKind
from ipamd.sim.virtual.clock import Process, VirtualClock
from ipamd.sim.virtual.ec2 import Instance, Latencies, VirtualEc2


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def ec2(clock: VirtualClock) -> VirtualEc2:
    return VirtualEc2(clock, Latencies(), Random(1))


@pytest.fixture
def instance(ec2: VirtualEc2) -> Instance:
    return ec2.launch("m5.large", ec2.add_subnet(24))  # 3 ENIs with 9 secondary addresses each


def create(instance: Instance, addresses: int = 0) -> str:
    return instance.create("", instance.subnet.id, (), addresses).id


def refused(error: pytest.ExceptionInfo[CloudError]) -> CloudErrorKind:
    return error.value.failure.kind


def test_time_goes_from_event_to_event_in_order(clock: VirtualClock) -> None:
    seen: list[tuple[str, float]] = []
    clock.call_later(2.0, lambda: seen.append(("late", clock())))
    clock.call_later(1.0, lambda: seen.append(("first", clock())))
    clock.call_later(1.0, lambda: seen.append(("second", clock())))
    clock.call_later(1.0, lambda: seen.append(("never", clock()))).cancel()
    clock.call_later(9.0, lambda: seen.append(("after the end", clock())))
    clock.run_until(3.0)
    assert seen == [("first", 1.0), ("second", 1.0), ("late", 2.0)]
    assert clock() == 3.0


def test_a_process_goes_on_after_each_delay(clock: VirtualClock) -> None:
    seen: list[float] = []

    def process() -> Process:
        for delay in (1.0, 0.5):
            yield delay
            seen.append(clock())

    clock.spawn(process())
    clock.run_until(10.0)
    assert seen == [1.0, 1.5]


def test_a_subnet_gives_all_or_nothing(ec2: VirtualEc2) -> None:
    subnet = ec2.add_subnet(28)
    instance = ec2.launch("m5.4xlarge", subnet)
    assert subnet.available == 10  # 16, less 5 that EC2 keeps, less the instance's own
    with pytest.raises(CloudError) as error:
        instance.assign(instance.primary.id, 11)
    assert refused(error) is CloudErrorKind.SUBNET_FULL
    assert subnet.available == 10
    addresses = instance.assign(instance.primary.id, 10)
    assert len(set(addresses)) == 10
    instance.unassign(instance.primary.id, addresses[:3])
    assert subnet.available == 3
    assert sorted(instance.assign(instance.primary.id, 3)) == sorted(addresses[:3])


def test_an_eni_takes_no_more_addresses_than_its_type_allows(instance: Instance) -> None:
    instance.assign(instance.primary.id, 9)
    with pytest.raises(CloudError) as error:
        instance.assign(instance.primary.id, 1)
    assert refused(error) is CloudErrorKind.ENI_ADDRESS_LIMIT
    large = create(instance, 10)  # it might go to a larger instance
    with pytest.raises(CloudError) as error:
        instance.attach(large, 1)
    assert refused(error) is CloudErrorKind.ENI_ADDRESS_LIMIT


def test_an_instance_takes_no_more_enis_than_its_type_allows(instance: Instance) -> None:
    for index in (1, 2):
        instance.attach(create(instance), index)
    third = create(instance)
    with pytest.raises(CloudError) as error:
        instance.attach(third, 2)
    assert refused(error) is CloudErrorKind.INCORRECT_STATE
    with pytest.raises(CloudError) as error:
        instance.attach(third, 3)
    assert refused(error) is CloudErrorKind.ATTACHMENT_LIMIT


def test_an_eni_is_deleted_only_once_it_is_detached(clock: VirtualClock, instance: Instance) -> None:
    before = instance.subnet.available
    eni = create(instance, 4)
    assert instance.subnet.available == before - 5
    attachment = instance.attach(eni, 1)
    instance.detach(attachment)
    with pytest.raises(CloudError) as error:
        instance.delete(eni)
    assert refused(error) is CloudErrorKind.INCORRECT_STATE
    observed = instance.describe(eni)
    assert observed is not None
    assert observed.attachment_status == "detaching"
    clock.run_until(clock() + 2.0)
    observed = instance.describe(eni)
    assert observed is not None
    assert observed.device_index is None
    instance.delete(eni)
    assert instance.describe(eni) is None
    assert instance.subnet.available == before
    assert instance.meter.held == 0
    with pytest.raises(CloudError) as error:
        instance.delete(eni)
    assert refused(error) is CloudErrorKind.NOT_FOUND


def test_an_address_of_another_eni_is_not_unassigned(instance: Instance) -> None:
    eni = instance.create("t", instance.subnet.id, (), 1)
    with pytest.raises(CloudError) as error:
        instance.unassign(instance.primary.id, eni.addresses)
    assert refused(error) is CloudErrorKind.INCORRECT_STATE


def test_a_token_asked_with_again_gives_the_same_eni(instance: Instance) -> None:
    eni = instance.create("t", instance.subnet.id, (), 1)
    assert instance.create("t", instance.subnet.id, (), 1) == eni
    assert instance.meter.held == 2
    instance.delete(eni.id)
    assert instance.create("t", instance.subnet.id, (), 1) == eni
    assert instance.describe(eni.id) is None and instance.meter.held == 0


def test_the_device_is_there_some_time_after_the_attachment(clock: VirtualClock, instance: Instance) -> None:
    assert instance.link_delay(instance.primary.id) == 0.0
    eni = create(instance)
    instance.attach(eni, 1)
    assert instance.link_delay(eni) == 0.5
    clock.run_until(0.3)
    assert instance.link_delay(eni) == pytest.approx(0.2)


def test_each_call_is_counted_and_takes_its_time(clock: VirtualClock, instance: Instance) -> None:
    steady = VirtualEc2(clock, Latencies(read=0.2), Random(1))
    assert steady.begin(instance, "CreateNetworkInterface") == 1.0
    assert steady.begin(instance, "DescribeSubnets") == 0.2
    assert steady.begin(instance, "CreateTags") == 0.3
    assert instance.calls == {"CreateNetworkInterface": 1, "DescribeSubnets": 1, "CreateTags": 1}
    shaky = VirtualEc2(clock, Latencies(jitter=0.5), Random(1))
    times = {shaky.begin(instance, "AttachNetworkInterface") for _ in range(50)}
    assert len(times) > 10
    assert min(times) >= 1.0
    assert max(times) <= 3.0


def test_idle_addresses_are_summed_over_time(clock: VirtualClock, instance: Instance) -> None:
    instance.assign(instance.primary.id, 4)
    clock.run_until(10.0)
    instance.meter.use(1)
    clock.run_until(15.0)
    assert instance.meter.idle_seconds() == 4 * 10 + 3 * 5
