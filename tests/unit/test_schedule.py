"""The chaos run's plan: the same for the same seed, and as rich as promised."""

import pytest

from scripts.resilience.schedule import CLIENTS, FULL, SMALL, Kind, abandons, plan


def test_a_seed_always_gives_the_same_plan_and_another_seed_another():
    assert plan(1, FULL) == plan(1, FULL)
    assert plan(1, FULL) != plan(2, FULL)


@pytest.mark.parametrize("shape", [FULL, SMALL])
@pytest.mark.parametrize("seed", range(20))
def test_each_plan_holds_enough_faults(seed, shape):
    faults = plan(seed, shape)
    kinds = [fault.kind for fault in faults]
    dealt = set(Kind) if abandons(seed) else set(Kind) - {Kind.STALL}
    assert shape is SMALL or set(kinds) == dealt
    assert kinds.count(Kind.KILL_SERVER) == shape.server_kills
    others = sum(kind not in (Kind.KILL_SERVER, Kind.STALL, Kind.CALM) for kind in kinds)
    # Some cuts may wait in vain for bytes.
    assert others > shape.client_faults
    assert all(fault.client < CLIENTS and fault.accepted <= CLIENTS for fault in faults)


@pytest.mark.parametrize("shape", [FULL, SMALL])
@pytest.mark.parametrize("seed", range(20))
def test_faults_come_in_the_order_of_rounds_and_leave_the_quiet_rounds_alone(seed, shape):
    rounds = [fault.round for fault in plan(seed, shape)]
    assert rounds == sorted(rounds)
    assert shape.quiet_round not in rounds
    assert max(rounds) < shape.rounds


@pytest.mark.parametrize("shape", [FULL, SMALL])
@pytest.mark.parametrize("seed", range(1, 20, 2))
def test_nothing_wakes_a_stalled_client_in_the_last_servers_life(seed, shape):
    last = max(fault.round for fault in plan(seed, shape) if fault.kind is Kind.STALL)
    kinds = {fault.kind for fault in plan(seed, shape) if fault.round == last}
    assert kinds.isdisjoint({Kind.PAUSE, Kind.KILL_CLIENT, Kind.KILL_SERVER})
