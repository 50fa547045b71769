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
        ec2.assign(instance.primary.id, 11)
    assert refused(error) is CloudErrorKind.SUBNET_FULL
    assert subnet.available == 10
    addresses = ec2.assign(instance.primary.id, 10)
    assert len(set(addresses)) == 10
    ec2.unassign(instance.primary.id, addresses[:3])
    assert subnet.available == 3
    assert ec2.assign(instance.primary.id, 3) == addresses[:3]


def test_an_eni_takes_no_more_addresses_than_its_type_allows(ec2: VirtualEc2, instance: Instance) -> None:
    ec2.assign(instance.primary.id, 9)
    with pytest.raises(CloudError) as error:
        ec2.assign(instance.primary.id, 1)
    assert refused(error) is CloudErrorKind.ENI_ADDRESS_LIMIT
    with pytest.raises(CloudError) as error:
        ec2.create(instance, instance.subnet.id, 10)
    assert refused(error) is CloudErrorKind.ENI_ADDRESS_LIMIT


def test_an_instance_takes_no_more_enis_than_its_type_allows(ec2: VirtualEc2, instance: Instance) -> None:
    for index in (1, 2):
        ec2.attach(ec2.create(instance, instance.subnet.id, 0).id, index)
    third = ec2.create(instance, instance.subnet.id, 0).id
    with pytest.raises(CloudError) as error:
        ec2.attach(third, 2)
    assert refused(error) is CloudErrorKind.INCORRECT_STATE
    with pytest.raises(CloudError) as error:
        ec2.attach(third, 3)
    assert refused(error) is CloudErrorKind.ATTACHMENT_LIMIT


def test_an_eni_is_deleted_only_once_it_is_detached(clock: VirtualClock, ec2: VirtualEc2, instance: Instance) -> None:
    before = instance.subnet.available
    eni = ec2.create(instance, instance.subnet.id, 4)
    assert instance.subnet.available == before - 5
    attachment = ec2.attach(eni.id, 1)
    ec2.detach(attachment)
    with pytest.raises(CloudError) as error:
        ec2.delete(eni.id)
    assert refused(error) is CloudErrorKind.INCORRECT_STATE
    observed = ec2.describe(eni.id)
    assert observed is not None
    assert observed.attachment_status == "detaching"
    clock.run_until(clock() + 2.0)
    observed = ec2.describe(eni.id)
    assert observed is not None
    assert observed.device_index is None
    ec2.delete(eni.id)
    assert ec2.describe(eni.id) is None
    assert instance.subnet.available == before
    assert instance.meter.held == 0
    with pytest.raises(CloudError) as error:
        ec2.delete(eni.id)
    assert refused(error) is CloudErrorKind.NOT_FOUND


def test_the_primary_eni_stays(ec2: VirtualEc2, instance: Instance) -> None:
    with pytest.raises(CloudError) as error:
        ec2.detach(instance.primary.attachment_id)
    assert refused(error) is CloudErrorKind.INCORRECT_STATE


def test_an_address_of_another_eni_is_not_unassigned(ec2: VirtualEc2, instance: Instance) -> None:
    eni = ec2.create(instance, instance.subnet.id, 1)
    with pytest.raises(CloudError) as error:
        ec2.unassign(instance.primary.id, eni.addresses)
    assert refused(error) is CloudErrorKind.INVALID


def test_the_device_is_there_some_time_after_the_attachment(
    clock: VirtualClock, ec2: VirtualEc2, instance: Instance
) -> None:
    assert ec2.link_delay(instance.primary.id) == 0.0
    eni = ec2.create(instance, instance.subnet.id, 0)
    ec2.attach(eni.id, 1)
    assert ec2.link_delay(eni.id) == 0.5
    clock.run_until(0.3)
    assert ec2.link_delay(eni.id) == pytest.approx(0.2)


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


def test_idle_addresses_are_summed_over_time(clock: VirtualClock, ec2: VirtualEc2, instance: Instance) -> None:
    ec2.assign(instance.primary.id, 4)
    clock.run_until(10.0)
    instance.meter.use(1)
    clock.run_until(15.0)
    assert instance.meter.idle_seconds() == 4 * 10 + 3 * 5
