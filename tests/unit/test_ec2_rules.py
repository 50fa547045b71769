"""EC2's rules, asked directly: what is chosen, and what a refused call leaves behind."""

from __future__ import annotations

import ipaddress
from itertools import count
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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


class SubnetMachine(RuleBasedStateMachine):
    """A subnet beside sets of what is taken: it gives what is free, and nothing else."""

    @initialize(seed=st.integers(0, 9))
    def build(self, seed: int) -> None:
        self.subnet = Subnet("subnet-1", "10.0.0.0/26", "a", Random(seed))
        self.every = {str(address) for address in list(self.subnet.network)[4:-1]}
        self.taken: set[str] = set()
        self.blocks: set[str] = set()

    def free(self) -> set[str]:
        return self.every - self.taken - {str(one) for block in self.blocks for one in ipaddress.IPv4Network(block)}

    def whole(self) -> set[str]:
        """The blocks that are free as a whole."""
        free, blocks = self.free(), self.subnet.network.subnets(new_prefix=28)
        return {str(block) for block in blocks if {str(one) for one in block} <= free}

    @precondition(lambda self: self.free())
    @rule(share=st.floats(0, 1))
    def take(self, share: float) -> None:
        free = self.free()
        new = self.subnet.take(max(round(share * len(free)), 1))
        assert len(new) == len(set(new)) and set(new) <= free
        self.taken.update(new)

    @rule()
    def take_too_much(self) -> None:
        with pytest.raises(Ec2Error):
            self.subnet.take(len(self.free()) + 1)
        with pytest.raises(Ec2Error):
            self.subnet.take_prefixes(len(self.whole()) + 1)

    @precondition(lambda self: self.whole())
    @rule(data=st.data(), named=st.booleans())
    def take_a_block(self, data: st.DataObject, named: bool) -> None:
        whole = self.whole()
        name = data.draw(st.sampled_from(sorted(whole)))
        [new] = self.subnet.take_named_prefixes([name]) if named else self.subnet.take_prefixes(1)
        assert new == name or (not named and new in whole)
        self.blocks.add(new)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.sampled_from(sorted(self.taken)), min_size=1))
        self.subnet.give_back(gone)
        self.taken -= gone

    @precondition(lambda self: self.blocks)
    @rule()
    def give_a_block_back(self) -> None:
        block = min(self.blocks)
        self.subnet.give_back_prefixes([block])
        self.blocks.remove(block)

    @invariant()
    def the_count_is_right(self) -> None:
        assert self.subnet.available == len(self.free())


TestSubnet = SubnetMachine.TestCase
TestSubnet.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


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


def test_prefix_goes_back_when_no_address_is_left_for_the_eni(rules: Ec2Rules) -> None:
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
