"""The chaos run's plan: the same for the same seed, and as rich as promised."""

import pytest

from scripts.resilience.chaos import LEAST_CLIENT_FAULTS, LEAST_SERVER_KILLS
from scripts.resilience.schedule import CLIENTS, QUIET_ROUND, ROUNDS, Kind, plan


def test_a_seed_always_gives_the_same_plan_and_another_seed_another():
    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


@pytest.mark.parametrize("seed", range(50))
def test_each_plan_holds_enough_faults_of_every_kind(seed):
    faults = plan(seed)
    kinds = [fault.kind for fault in faults]
    assert set(kinds) == set(Kind)
    assert kinds.count(Kind.KILL_SERVER) >= LEAST_SERVER_KILLS
    others = sum(kind not in (Kind.KILL_SERVER, Kind.CALM) for kind in kinds)
    # Some cuts may wait in vain for bytes.
    assert others > LEAST_CLIENT_FAULTS
    assert all(fault.client < CLIENTS and fault.accepted <= CLIENTS for fault in faults)


@pytest.mark.parametrize("seed", range(50))
def test_faults_come_in_the_order_of_rounds_and_leave_the_quiet_rounds_alone(seed):
    rounds = [fault.round for fault in plan(seed)]
    assert rounds == sorted(rounds)
    assert QUIET_ROUND not in rounds
    assert max(rounds) < ROUNDS
