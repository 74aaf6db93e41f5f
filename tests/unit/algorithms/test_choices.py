"""What each strategy takes, what it refuses, and what is built of it."""

import re

import pytest

from common.algorithms import BUILT_IN
from common.algorithms.scaffold import Scaffold
from common.errors import InputError
from common.tasks import load_task
from common.training import TrainConfig
from server.configuration import algorithm, parse, resolve

NEEDED = {"norm-bounding": ["--norm-bound", "1"]}


def resolved(*argv, **defaults):
    task = load_task("digits")
    task.defaults = TrainConfig(**defaults)
    return resolve(parse(list(argv)), task)


def built(*argv):
    return algorithm(resolved(*argv))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_strategy_is_built_of_its_name_alone(name):
    strategy = built("--strategy", name, *NEEDED.get(name, []))
    assert type(strategy).__module__.startswith("common.algorithms.")


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_resolved_resolves_to_itself(name):
    """As a resumed run's saved options do."""
    options = resolved("--strategy", name, *NEEDED.get(name, []))
    assert resolve(options, load_task("digits")) == options


@pytest.mark.parametrize("name", BUILT_IN)
def test_all_but_those_that_bound_long_updates_themselves_leave_them_out(name):
    argv = ("--strategy", name, *NEEDED.get(name, []))
    bounded = name in {"multi-krum", "norm-bounding"}
    assert resolved(*argv).limits.max_norm_ratio == (0.0 if bounded else 100.0)
    assert resolved(*argv, "--max-norm-ratio", "0").limits.max_norm_ratio == 0.0
    if bounded:
        with pytest.raises(InputError, match=f"--max-norm-ratio: --strategy {name}"):
            resolved(*argv, "--max-norm-ratio", "10")
    else:
        assert resolved(*argv, "--max-norm-ratio", "10").limits.max_norm_ratio == 10.0


def test_a_ratio_that_leaves_out_the_median_is_an_error():
    with pytest.raises(InputError, match=r"--max-norm-ratio: 0\.5 leaves out the median"):
        resolved("--max-norm-ratio", "0.5")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("fedavg", (1.0, None, None, None)),
        ("fedavgm", (1.0, 0.9, None, None)),
        ("fedadagrad", (0.1, 0.0, None, 1e-3)),
        ("fedadam", (0.01, 0.9, 0.99, 1e-3)),
    ],
)
def test_each_has_its_own_defaults(name, values):
    found = resolved("--strategy", name).strategy
    assert (
        found.server_lr,
        found.server_momentum,
        found.server_beta2,
        found.server_tau,
    ) == values


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--server-momentum", "0.9"],
            "--server-momentum is not an option of --strategy fedavg; it applies to fedavgm",
        ),
        (["--proximal-mu", "0.1"], "--proximal-mu is not .* it applies to fedprox, fednova$"),
        (
            ["--strategy", "median", "--trim-fraction", "0.1"],
            "--trim-fraction is not .* trimmed-mean$",
        ),
        (
            ["--strategy", "fedadagrad", "--server-beta2", "0.9"],
            "--server-beta2 is not .* fedadam, fedyogi$",
        ),
        (["--strategy", "norm-bounding"], "--norm-bound: --strategy norm-bounding needs"),
        (["--strategy", "scaffold", "--momentum", "0.9"], "--momentum: 0.9 does not go with"),
        (["--strategy", "median", "--max-share", "0.5"], "--max-share: with --strategy median"),
        (["--strategy", "multi-krum", "--num-hostile", "2"], "multi-krum needs 7 updates"),
        (["--strategy", "multi-krum", "--fraction", "0.4"], "needs 3 updates .* a round wants 2"),
        (["--strategy", "fednova", "--max-share", "0.5"], "--max-share: --strategy fednova also"),
        (["--strategy", "scaffold", "--max-share", "0.5"], "--max-share: --strategy scaffold"),
        (["--strategy", "fednova", "--lr", "2", "--proximal-mu", "0.5"], "--proximal-mu: .* is 1"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(argv, message):
    with pytest.raises(InputError, match=message):
        resolved(*argv)


def test_a_tasks_own_momentum_counts_too():
    with pytest.raises(InputError, match=re.escape("--momentum: 0.5")):
        resolved("--strategy", "scaffold", momentum=0.5)


def test_fedprox_has_a_proximal_term_and_fedavg_none():
    assert resolved("--strategy", "fedprox").training.proximal_mu == 0.01
    assert resolved("--strategy", "fedprox", proximal_mu=0.5).training.proximal_mu == 0.5
    assert resolved().training.proximal_mu == 0.0


def test_scaffold_counts_all_partitions_as_its_clients():
    assert isinstance(built("--strategy", "scaffold"), Scaffold)
    assert built("--strategy", "scaffold").state_names == ("control",)
