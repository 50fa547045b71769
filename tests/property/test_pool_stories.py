"""What the pool's machine has found, step by step, so that it is tried in each run."""

from __future__ import annotations

from tests.property.test_pool_machine import PoolMachine


def test_a_release_ends_when_its_addresses_went_elsewhere() -> None:
    """The node is restarted while EC2 carries an UnassignPrivateIpAddresses out, and then gets the same addresses for
    another ENI. The first ENI was never read again, and so took no address any more."""
    machine = PoolMachine()
    machine.build(
        spare=24,
        release_delay=10.0,
        max_pods=3,
        minimum=2,
        slack=2,
        warm=0,
        seed=0,
        reuse_after=30.0,
        coalesce=0.05,
    )
    machine.calm()
    machine.drain()
    machine.lag()
    machine.undrain()
    machine.crash(after_sending=False, lagging=False)
    machine.calm()
    assert not machine.ledger.intents
    assert not any(eni.in_limbo for eni in machine.pool.inventory.enis.values())
