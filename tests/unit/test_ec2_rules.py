"""EC2's rules, asked directly: what is chosen, and what a refused call leaves behind."""

from __future__ import annotations

import ipaddress
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipamd.pool.model import Limits
from ipamd.sim.ec2.rules import RESERVED, Ask, Ec2Error, Ec2Rules, Instance, Subnet

LIMITS = {"m5.large": Limits(3, 10), "t3.nano": Limits(2, 2), "p4d.24xlarge": Limits(15, 50)}


def rules_of(seed: int = 1) -> Ec2Rules:
    numbers = count(1)
    return Ec2Rules(
        "10.0.0.0/16", limits=LIMITS, random=Random(seed), region="r", ids=lambda kind: f"{kind}-{next(numbers):017x}"
    )


@pytest.fixture
def rules() -> Ec2Rules:
    return rules_of()


@pytest.fixture
def subnet(rules: Ec2Rules) -> Subnet:
    return rules.add_subnet("10.0.0.0/24")


@pytest.fixture
def instance(rules: Ec2Rules, subnet: Subnet) -> Instance:
    return rules.launch("n1", "m5.large", subnet.id, 0.0)


def refused(error: pytest.ExceptionInfo[Ec2Error]) -> str:
    return error.value.code


def test_addresses_are_random_and_the_seed_decides() -> None:
    def given(seed: int) -> list[str]:
        return rules_of(seed).add_subnet("10.0.0.0/24").take(20)

    assert given(1) == given(1)
    assert given(1) != given(2)
    assert given(1) != sorted(given(1), key=ipaddress.IPv4Address)


def test_single_addresses_break_the_whole_blocks_of_a_subnet(subnet: Subnet) -> None:
    subnet.take(20)  # of 251: with the lowest first two blocks would be broken
    with pytest.raises(Ec2Error) as error:
        subnet.take_prefixes(12)
    assert refused(error) == "InsufficientCidrBlocks"


@pytest.mark.parametrize("length", [24, 28, 29])
def test_a_subnet_never_gives_the_five_that_ec2_keeps(rules: Ec2Rules, length: int) -> None:
    subnet = rules.add_subnet(f"10.0.1.0/{length}")
    every = [str(address) for address in subnet.network]
    assert subnet.available == len(every) - RESERVED
    assert set(subnet.take(subnet.available)) == set(every[4:-1])


@given(st.data())
def test_a_subnet_gives_what_is_free_and_nothing_else(data: st.DataObject) -> None:
    subnet = Subnet("subnet-1", "10.0.0.0/26", "a", Random(data.draw(st.integers(0, 9))))
    every = {str(address) for address in list(subnet.network)[4:-1]}
    taken: set[str] = set()
    blocks: set[str] = set()
    for step in data.draw(st.lists(st.sampled_from(["take", "block", "named", "back", "block back"]), max_size=30)):
        inside = {str(one) for block in blocks for one in ipaddress.IPv4Network(block)}
        free = every - taken - inside
        assert subnet.available == len(free)
        if step == "take" and free:
            new = set(subnet.take(data.draw(st.integers(1, len(free)))))
            assert new <= free
            taken |= new
        elif step == "back" and taken:
            gone = data.draw(st.sets(st.sampled_from(sorted(taken)), min_size=1))
            subnet.give_back(gone)
            taken -= gone
        elif step == "block back" and blocks:
            subnet.give_back_prefixes([block := data.draw(st.sampled_from(sorted(blocks)))])
            blocks.remove(block)
        elif step in ("block", "named"):
            whole = [
                str(block) for block in subnet.network.subnets(new_prefix=28) if {str(one) for one in block} <= free
            ]
            if whole:
                name = data.draw(st.sampled_from(whole))
                new_blocks = set(subnet.take_prefixes(1) if step == "block" else subnet.take_named_prefixes([name]))
                assert new_blocks <= set(whole)
                blocks |= new_blocks


def test_an_address_is_given_back_once(subnet: Subnet) -> None:
    [address] = subnet.take(1)
    subnet.give_back([address])
    with pytest.raises(AssertionError):
        subnet.give_back([address])


def test_what_is_refused_has_changed_nothing(rules: Ec2Rules, subnet: Subnet, instance: Instance) -> None:
    full = rules.create(subnet.id, 0.0, Ask(9))
    before = subnet.available
    for wrong in (Ask(), Ask(-1), Ask(1, 1), Ask(10), Ask(prefixes=10), Ask(named_prefixes=("10.0.9.0/28",))):
        with pytest.raises(Ec2Error):
            rules.assign(instance.primary.id, wrong)
    with pytest.raises(Ec2Error) as error:
        rules.create(subnet.id, 0.0, Ask(prefixes=16))  # there are not so many
    assert refused(error) == "InsufficientCidrBlocks"
    with pytest.raises(Ec2Error):
        rules.unassign(full.id, [full.addresses[1], full.addresses[0]])  # one of them is the primary one
    assert subnet.available == before and len(full.addresses) == 10


def test_no_prefix_is_lost_without_the_primary_address(rules: Ec2Rules) -> None:
    subnet = rules.add_subnet("10.0.1.0/26")
    subnet.take(subnet.available)
    subnet.give_back(str(address) for address in ipaddress.IPv4Network("10.0.1.16/28"))
    with pytest.raises(Ec2Error) as error:
        rules.create(subnet.id, 0.0, Ask(prefixes=1))
    assert refused(error) == "InsufficientFreeAddressesInSubnet"
    assert subnet.available == 16


def test_a_token_stands_for_one_set_of_parameters(rules: Ec2Rules, subnet: Subnet) -> None:
    eni = rules.create(subnet.id, 1.0, Ask(2), token="t", tags={"a": "1"})
    before = subnet.available
    assert rules.create(subnet.id, 2.0, Ask(2), token="t", tags={"a": "1"}) is eni
    for other in (Ask(3), Ask(prefixes=2)):
        with pytest.raises(Ec2Error) as error:
            rules.create(subnet.id, 2.0, other, token="t", tags={"a": "1"})
        assert refused(error) == "IdempotentParameterMismatch"
    assert subnet.available == before and eni.created == 1.0


def test_a_token_of_a_deleted_eni_answers_as_the_first_time(rules: Ec2Rules, subnet: Subnet) -> None:
    eni = rules.create(subnet.id, 1.0, Ask(2), token="t")
    addresses = list(eni.addresses)
    rules.assign(eni.id, Ask(1))
    rules.delete(eni.id)
    before = subnet.available
    again = rules.create(subnet.id, 2.0, Ask(2), token="t")
    assert (again.id, again.addresses) == (eni.id, addresses)
    assert eni.id not in rules.enis and subnet.available == before


def test_a_place_is_taken_from_attaching_until_detached(rules: Ec2Rules, subnet: Subnet, instance: Instance) -> None:
    first, second = rules.create(subnet.id, 0.0), rules.create(subnet.id, 0.0)
    attachment = rules.attach(first.id, instance.id, 1, 0.0)
    with pytest.raises(Ec2Error):
        rules.attach(second.id, instance.id, 1, 0.0)
    assert rules.end_attach(first, attachment) and not rules.end_attach(first, attachment)
    rules.detach(attachment.id)
    with pytest.raises(Ec2Error):
        rules.attach(second.id, instance.id, 1, 0.0)
    rules.end_detach(first)
    assert list(instance.enis) == [instance.primary.id]
    rules.attach(second.id, instance.id, 1, 0.0)
    with pytest.raises(Ec2Error) as error:
        rules.detach(attachment.id)
    assert refused(error) == "InvalidAttachmentID.NotFound"


def test_an_attachment_that_is_detached_by_force_never_ends(
    rules: Ec2Rules, subnet: Subnet, instance: Instance
) -> None:
    eni = rules.create(subnet.id, 0.0)
    attachment = rules.attach(eni.id, instance.id, 1, 0.0)
    with pytest.raises(Ec2Error) as error:
        rules.detach(attachment.id)
    assert refused(error) == "IncorrectState"
    rules.detach(attachment.id, force=True)
    assert not rules.end_attach(eni, attachment)
    assert attachment.status == "detaching"


def test_a_terminated_instance_is_known_for_an_hour(rules: Ec2Rules, subnet: Subnet, instance: Instance) -> None:
    rules.terminate([instance.id], 10.0)
    rules.end_detach(instance.primary)
    rules.delete(instance.primary.id)
    rules.end_terminate(instance, 20.0)
    assert instance.id in rules.known_instances(3619.0)
    assert instance.id not in rules.known_instances(3620.0)
    eni = rules.create(subnet.id, 0.0)
    with pytest.raises(Ec2Error) as error:
        rules.attach(eni.id, instance.id, 1, 3619.0)
    assert refused(error) == "IncorrectState"
    with pytest.raises(Ec2Error) as error:
        rules.attach(eni.id, instance.id, 1, 3620.0)
    assert refused(error) == "InvalidInstanceID.NotFound"
