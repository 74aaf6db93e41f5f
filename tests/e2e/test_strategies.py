"""Strategies whose clients do more than train, as real processes."""

import shutil

import pytest
import torch
from safetensors.torch import load

from common.seeds import derive_seed
from server.app import initial_model
from server.engine.cohort import select_cohort
from tests.e2e.harness import json_lines
from tests.e2e.tiny import tiny_shares

ROUNDS, CLIENTS, COHORT, LR = 6, 3, 2, 0.1


def _scaffold_in_process(seed, lost=()):
    """Algorithm 1 with option II over Tiny; `lost` holds (round, client) whose c_i was lost."""
    task, data, shares = tiny_shares(CLIENTS, seed)
    x = [p.detach().clone() for p in initial_model(task, "linear", seed, {}).parameters()]
    c = [torch.zeros_like(p) for p in x]
    own = [[torch.zeros_like(p) for p in x] for _ in shares]
    names = {f"client-{index}": index for index in range(CLIENTS)}
    for number in range(1, ROUNDS + 1):
        cohort = [names[name] for name in select_cohort(seed, number, 1, names, COHORT)]
        total_count = sum(len(shares[index]) for index in cohort)
        means, new_x, new_c = {}, [p.double() for p in x], list(c)
        for index in cohort:
            chosen, share = shares[index], len(shares[index]) / total_count
            if (number, index) in lost:
                own[index] = c
            y, total, steps = [p.clone() for p in x], [torch.zeros_like(p) for p in x], 0
            generator = torch.Generator().manual_seed(
                derive_seed(seed, "train", number, f"client-{index}")
            )
            for batch in torch.randperm(len(chosen), generator=generator).split(8):
                y = [p.requires_grad_() for p in y]
                outputs = data.inputs[chosen[batch]] @ y[0].T + y[1]
                loss = torch.nn.functional.cross_entropy(outputs, data.targets[chosen[batch]])
                gradients = torch.autograd.grad(loss, y)
                total = [t + g for t, g in zip(total, gradients, strict=True)]
                y = [
                    (p - LR * (g - mine + all_)).detach()
                    for p, g, mine, all_ in zip(y, gradients, own[index], c, strict=True)
                ]
                steps += 1
            means[index] = [t / steps for t in total]
            new_x = [n + share * (q - p) for n, q, p in zip(new_x, y, x, strict=True)]
            new_c = [
                n + COHORT / CLIENTS * share * (mean - mine)
                for n, mean, mine in zip(new_c, means[index], own[index], strict=True)
            ]
        for index, mean in means.items():
            own[index] = mean
        c, x = new_c, [n.float() for n in new_x]
    return dict(zip(("weight", "bias"), x, strict=True))


def _run(federation, *flags, rounds=ROUNDS):
    return federation.server(
        *("--rounds", rounds, "--min-clients", CLIENTS, "--num-partitions", CLIENTS),
        *("--seed", 5, *flags),
    )


@pytest.mark.parametrize("loses", [False, True])
def test_scaffold_is_that_of_the_paper_also_for_a_client_that_lost_its_state(federation, loses):
    torch.set_num_threads(1)
    state = federation.folder / "state"
    flags = ("--strategy", "scaffold", "--fraction", 0.67)
    for rounds, resume in ((2, ()), (ROUNDS, ("--resume",))):
        server = _run(federation, *flags, *resume, rounds=rounds)
        clients = [federation.client(held, "--state-dir", state) for held in ("0", "1-2")]
        assert server.wait() == 0, server.text
        assert [client.wait() for client in clients] == [0, 0], clients[0].text
        if loses and rounds == 2:
            (folder,) = state.glob("client-1-*")
            shutil.rmtree(folder)
    assert len(clients[1].events("what was kept is lost")) == loses
    found = load(federation.model)
    for name, expected in _scaffold_in_process(5, [(3, 1)] if loses else []).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_a_robust_strategy_keeps_no_share_and_commits(federation):
    server = _run(federation, "--strategy", "median", "--server-momentum", 0.5, rounds=2)
    client = federation.client("0-2")
    assert server.wait() == 0, server.text
    assert client.wait() == 0
    rows = json_lines(federation.run_dir / "clients.jsonl")
    assert {row["share"] for row in rows} == {None}
    assert (federation.run_dir / "rounds/00002/momentum.safetensors").exists()


def test_hostile_clients_break_fedavg_and_not_the_median(federation, another_federation):
    accuracies = []
    for process, strategy in ((federation, "fedavg"), (another_federation, "median")):
        flags = ("--partitioner", "iid", "--local-epochs", 5, "--strategy", strategy)
        server = process.server(
            *("--rounds", 5, "--min-clients", 5, "--num-partitions", 5, *flags),
            task="tests.tasks:Attacked",
        )
        process.client("0-3", task="tests.tasks:Attacked")
        process.client("4", task="tests.tasks:Attacked", HOSTILE="1")
        assert server.wait() == 0, server.text
        accuracies.append(process.rows[-1]["global_accuracy"])
    broken, kept = accuracies
    assert broken < 0.6
    assert kept > 0.8
