"""Whole runs of real processes, from the first join to the saved model."""

import csv
import json
import signal

import torch
from safetensors.torch import load

from common.seeds import derive_seed
from common.tasks import Examples
from common.tensors import encode
from protos import federated_pb2 as pb
from server.app import initial_model
from tests.e2e.harness import TASK, interrupt, json_lines, until
from tests.e2e.tiny import tiny_shares

ROUNDS = 3
PARTITIONS = 4


def _fedavg_in_process(seed: int) -> bytes:
    """FedAvg over Tiny as the processes are asked to run it, in one process and no framework."""
    task, data, shares = tiny_shares(PARTITIONS, seed)
    model = initial_model(task, "linear", seed, {})
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for number in range(1, ROUNDS + 1):
        totals = {name: torch.zeros_like(value).double() for name, value in weights.items()}
        for index, chosen in enumerate(shares):
            model.load_state_dict(weights)
            client_seed = derive_seed(seed, "train", number, f"client-{index}")
            examples = Examples(data.inputs[chosen], data.targets[chosen])
            task.train(model, examples, task.defaults, client_seed, lambda *_: None)
            for name, value in model.state_dict().items():
                totals[name] += (value - weights[name]).double() * len(chosen)
        for name, total in totals.items():
            mean = total / sum(map(len, shares))
            weights[name] = (weights[name].double() + mean).float()
    return encode(weights)


def _run(federation, spread, *flags):
    server = federation.server(
        *("--rounds", ROUNDS, "--min-clients", PARTITIONS, "--num-partitions", PARTITIONS),
        *("--seed", 5, *flags),
    )
    clients = [federation.client(held) for held in spread]
    assert server.wait() == 0, server.text
    assert [client.wait() for client in clients] == [0] * len(spread)
    return federation.model


def test_the_model_is_byte_for_byte_that_of_fedavg_in_one_process(federation):
    torch.set_num_threads(1)
    assert _run(federation, ["0", "1-3"]) == _fedavg_in_process(seed=5)


def test_the_model_does_not_depend_on_how_partitions_are_spread_over_processes(
    federation, another_federation
):
    one = _run(federation, ["0-3"])
    assert one == _run(another_federation, ["2-3", "0", "1"])


def test_the_model_does_not_depend_on_the_order_in_which_clients_report(
    federation, another_federation
):
    models = []
    for process, order in ((federation, "012"), (another_federation, "201")):
        server = process.server(
            *("--rounds", 1, "--min-clients", 3, "--num-partitions", 3),
            task="tests.tasks:Gated",
        )
        gates = {part: process.folder / f"gate-{part}" for part in order}
        for part, gate in gates.items():
            process.client(part, task="tests.tasks:Gated", GATE=str(gate))
        for count, part in enumerate(order, start=1):
            gates[part].touch()
            if count < len(order):
                process.wait_for(lambda run, count=count: run.round.accepted_count == count)
        assert server.wait() == 0, server.text
        arrived = [event["client"] for event in server.events("update accepted")]
        assert arrived == [f"client-{part}" for part in order]
        models.append(process.model)
    assert models[0] == models[1]


def test_a_run_leaves_models_metrics_and_logs(federation):
    flags = ("--num-partitions", 2, "--partitioner", "iid", "--keep-rounds", 1)
    server = federation.server("--rounds", 2, *flags)
    clients = [federation.client(index) for index in range(2)]
    assert server.wait() == 0, server.text
    assert [client.wait() for client in clients] == [0, 0]
    folder = federation.run_dir
    models = folder / "models"
    weights = load(federation.model)
    pickled = torch.load(models / "global.pth", weights_only=True)
    assert all(torch.equal(weights[name], pickled[name]) for name in weights)
    rows = federation.rows
    assert [row["round"] for row in rows] == [1, 2]
    assert rows[1]["num_clients"] == rows[1]["cohort_size"] == 2
    assert rows[1]["num_examples"] == 180  # Of 200, a tenth is held out by the clients.
    assert rows[1]["bytes_up"] == 2 * len(federation.model)
    # The model was pulled to be evaluated, and is not pulled again to train from it.
    assert rows[1]["bytes_down"] == 2 * len(federation.model)
    assert 0 <= rows[1]["client_accuracy"] <= 1
    with (folder / "metrics.csv").open() as file:
        assert [int(row["round"]) for row in csv.DictReader(file)] == [1, 2]
    best = json.loads((models / "best.json").read_text())
    assert best["round"] == rows[1]["best_round"]
    assert best["accuracy"] == max(row["global_accuracy"] for row in rows)
    clients_rows = json_lines(folder / "clients.jsonl")
    assert [row["client_id"] for row in clients_rows] == ["client-0", "client-1"] * 2
    assert all(row["outcome"] == "accepted" for row in clients_rows)
    assert sorted(path.name for path in (folder / "rounds").iterdir()) == ["00002"]
    log = json_lines(folder / "server.jsonl")
    accepted = [line for line in log if line["event"] == "update accepted"]
    assert {(line["round"], line["client"]) for line in accepted} == {
        (number, client) for number in (1, 2) for client in ("client-0", "client-1")
    }
    assert all(line["run_id"] == "run" for line in log)


def test_a_client_that_joins_late_takes_part_from_the_next_round(federation):
    gate = federation.folder / "gate"
    environment = {"task": "tests.tasks:Gated", "GATE": str(gate)}
    server = federation.server("--rounds", 2, "--num-partitions", 3, task="tests.tasks:Gated")
    early = [federation.client(index, **environment) for index in (0, 1)]
    federation.wait_for(lambda run: run.round.phase == pb.Round.PHASE_REPORTING)
    late = federation.client(2, **environment)
    federation.wait_for(lambda run: run.live_client_count == 3)
    gate.touch()
    assert server.wait() == 0, server.text
    assert [client.wait() for client in (*early, late)] == [0, 0, 0]
    assert [row["cohort_size"] for row in federation.rows] == [2, 3]


def test_a_client_that_starts_before_the_server_waits_for_it(federation):
    federation.server("--rounds", 1).signal(signal.SIGKILL)
    client = federation.client("0-1")
    until(lambda: client.events("waiting for the server"), "the client to say that it waits")
    port = federation.address
    federation.run_dir = federation.folder / "second"
    server = federation.start(
        *("server", "--bind", port, "--rounds", 1, "--task", TASK),
        *("--run-dir", federation.run_dir),
    )
    assert server.wait() == 0, server.text
    assert client.wait() == 0, client.text


def test_partial_participation_picks_three_of_ten_each_round(federation):
    server = federation.server(
        *("--rounds", 4, "--fraction", 0.3, "--min-clients", 10, "--num-partitions", 10),
        *("--partitioner", "iid"),
    )
    federation.client("0-9")
    assert server.wait() == 0, server.text
    assert [row["cohort_size"] for row in federation.rows] == [3] * 4
    assert [row["accepted"] for row in federation.rows] == [3] * 4
    chosen = json_lines(federation.run_dir / "clients.jsonl")
    assert len({row["client_id"] for row in chosen}) > 3


def test_a_run_stops_early_at_the_target_accuracy(federation):
    server = federation.server("--rounds", 50, "--target-accuracy", 0.2, "--num-partitions", 2)
    federation.client("0-1")
    assert server.wait() == 0, server.text
    assert len(federation.rows) < 50
    assert federation.rows[-1]["global_accuracy"] >= 0.2


def test_ctrl_c_and_sigterm_end_either_side_within_five_seconds(federation):
    gate = federation.folder / "gate"
    server = federation.server(task="tests.tasks:Gated")
    clients = [
        federation.client(index, task="tests.tasks:Gated", GATE=f"{gate}-{index}")
        for index in (0, 1)
    ]
    for index in (0, 1):
        reached = federation.folder / f"gate-{index}.reached"
        until(reached.exists, "the client to train")
    status, seconds = interrupt(clients[0], signal.SIGINT)
    assert status == 130, clients[0].text
    assert seconds < 5
    federation.wait_for(lambda run: run.live_client_count == 1)
    status, seconds = interrupt(server, signal.SIGTERM)
    assert status == 143, server.text
    assert seconds < 5
    status, seconds = interrupt(clients[1], signal.SIGTERM)
    assert status == 143, clients[1].text
    assert seconds < 5
