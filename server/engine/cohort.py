"""Who is selected for a round: pure functions of seed, round, attempt and the live clients.

Nothing about past rounds is stored, so a resumed run selects as an undisturbed one.
"""

from collections.abc import Iterable
from math import ceil

from common.seeds import derive_seed


def wanted_updates(live: int, fraction: float, min_cohort: int) -> int:
    """Return how many updates a round wants from `live` clients, at least 1.

    The m = max(C·K, 1) of FedAvg (McMahan et al. 2017, algorithm 1), to the nearest whole
    number, and no less than `min_cohort` as far as there are clients.
    """
    return max(1, round(fraction * live), min(min_cohort, live))


def select_cohort(
    seed: int, round_number: int, attempt: int, live: Iterable[str], size: int
) -> tuple[str, ...]:
    """Return `size` of the live client ids (all, if there are fewer), in ascending order.

    Each client draws a number from (seed, round, attempt, its id); the smallest win. So
    the choice does not depend on the order of joining, and one client more or less
    changes at most one place.
    """
    ranked = sorted(
        live,
        key=lambda client: (derive_seed(seed, "cohort", round_number, attempt, client), client),
    )
    return tuple(sorted(ranked[:size]))


def cohort_size(wanted: int, over_select: float, live: int) -> int:
    """Return how many clients to select so that `wanted` updates come despite dropouts."""
    # Rounded first: 1.1 * 50 is a little over 55 in binary.
    return min(live, ceil(round(over_select * wanted, 9)))
