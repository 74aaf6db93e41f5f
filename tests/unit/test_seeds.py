"""Derived seeds: the same on every machine, and independent of each other."""

import pytest

from common.seeds import derive_seed


def test_a_seed_is_the_same_on_every_machine_and_in_every_version():
    assert derive_seed(0, "train", 1, "client-3") == 6750261458253403040
    assert derive_seed(7) == 6740374939402486101


@pytest.mark.parametrize(
    "other",
    [
        (1, "train", 1, "a"),
        (0, "evaluate", 1, "a"),
        (0, "train", 2, "a"),
        (0, "train", 1, "b"),
        (0, "train", 1),
        (0, "train", 1, "a", ""),
        (0, "train1", "a"),
        (0, "train", "1a"),
    ],
)
def test_other_labels_give_another_seed(other):
    assert derive_seed(*other) != derive_seed(0, "train", 1, "a")


def test_seeds_fit_a_signed_64_bit_integer():
    seeds = [derive_seed(seed) for seed in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
