"""What goes wrong with real processes: killed, restarted, misled and misconfigured."""

import os
import shutil
import signal
import time

import pytest

from protos import federated_pb2 as pb
from tests.e2e.harness import TASK, json_lines, until

GATED = "tests.tasks:Gated"


def _gated(federation, index, **flags):
    gate = federation.folder / f"gate-{index}"
    client = federation.client(index, task=GATED, GATE=str(gate))
    return client, gate, federation.folder / f"gate-{index}.reached"


def test_the_round_commits_by_quorum_when_a_client_is_killed_in_training(federation):
    server = federation.server(
        *("--rounds", 2, "--min-clients", 3, "--num-partitions", 3, "--lease", 3),
        *("--quorum", 2),
        task=GATED,
    )
    clients = [_gated(federation, index) for index in range(3)]
    for _, _, reached in clients:
        until(reached.exists, "the client to train")
    victim = clients[0][0]
    victim.signal(signal.SIGKILL)
    victim.wait()
    for _, gate, _ in clients[1:]:
        gate.touch()
    federation.wait_for(lambda run: run.round.number == 2)
    # The next round needs three again: a new process of the same client completes it.
    clients[0][1].touch()
    back, _, _ = _gated(federation, 0)
    assert server.wait() == 0, server.text
    assert [process.wait() for process in (back, clients[1][0], clients[2][0])] == [0, 0, 0]
    first, second = federation.rows
    assert (first["accepted"], first["dropped"], first["cohort_size"]) == (2, 1, 3)
    assert (second["accepted"], second["dropped"]) == (3, 0)
    outcomes = json_lines(federation.run_dir / "clients.jsonl")[:3]
    assert [row["outcome"] for row in outcomes] == ["dropped", "accepted", "accepted"]


@pytest.mark.parametrize("cohort", [True, False], ids=["cohort", "no cohort"])
def test_a_server_killed_in_a_round_goes_on_and_ends_with_the_same_model(
    federation, another_federation, cohort
):
    flags = ("--rounds", 3, "--min-clients", 3, "--num-partitions", 3)
    undisturbed = another_federation.server(*flags)
    another_federation.client("0-2")
    assert undisturbed.wait() == 0, undisturbed.text

    server = federation.server(*flags, task=GATED)
    clients = [_gated(federation, index) for index in range(3)]
    clients[0][1].touch()
    federation.wait_for(lambda run: run.round.accepted_count == 1)
    server.signal(signal.SIGKILL)
    server.wait()
    if not cohort:  # As a hand may delete it; then nobody had work of this round.
        (federation.run_dir / "rounds" / "00001" / "cohort.json").unlink()
    again = federation.server("--resume", bind=federation.address, task=GATED)
    resumed = again.events("run resumed")
    assert [event["accepted"] for event in resumed] == ([["client-0"]] if cohort else [])
    for _, gate, _ in clients[1:]:
        gate.touch()
    assert again.wait() == 0, again.text
    assert [client.wait() for client, *_ in clients] == [0, 0, 0]
    assert federation.model == another_federation.model
    assert [row["round"] for row in federation.rows] == [1, 2, 3]


def test_a_suspended_server_does_not_blame_its_clients(federation, another_federation):
    flags = ("--rounds", 2, "--min-clients", 4, "--num-partitions", 4, "--fraction", 0.5)
    undisturbed = another_federation.server(*flags)
    another_federation.client("0-3")
    assert undisturbed.wait() == 0, undisturbed.text

    server = federation.server(*flags, "--lease", 1, task=GATED)
    clients = [_gated(federation, index) for index in range(4)]
    until(lambda: sum(reached.exists() for *_, reached in clients) == 2, "the cohort to train")
    server.signal(signal.SIGSTOP)
    suspended = time.monotonic()
    until(lambda: time.monotonic() - suspended > 3, "three leases to pass")
    server.signal(signal.SIGCONT)
    until(lambda: server.events("the server stood still; that time does not count"), "a look")
    for _, gate, _ in clients:
        gate.touch()
    assert server.wait() == 0, server.text
    assert server.events("client lost") == []
    assert [row["attempt"] for row in federation.rows] == [1, 1]
    assert federation.model == another_federation.model


def test_an_order_to_stop_outlives_a_killed_server_until_the_run_is_given_more_rounds(federation):
    flags = ("--rounds", 3, "--num-partitions", 2)
    server = federation.server(*flags, task=GATED)
    clients = [_gated(federation, index) for index in range(2)]
    for _, _, reached in clients:
        until(reached.exists, "the client to train")
    with federation.admin() as admin:
        stopping = admin.StopRun(pb.StopRunRequest(), timeout=10).run
    assert stopping.state == pb.Run.STATE_STOPPING
    server.signal(signal.SIGKILL)
    server.wait()
    again = federation.server("--resume", *flags, bind=federation.address, task=GATED)
    for _, gate, _ in clients:
        gate.touch()
    assert again.wait() == 0, again.text
    assert [client.wait() for client, *_ in clients] == [0, 0]
    assert again.events("run ended")[0]["reason"] == "stopped by an operator"
    assert [row["round"] for row in federation.rows] == [1]
    # The same command once more, and the deliberate one.
    ended = federation.server("--resume", *flags, task=GATED, wait=False)
    assert ended.wait() == 0, ended.text
    assert [row["round"] for row in federation.rows] == [1]
    longer = federation.server("--resume", "--rounds", 4, task=GATED)
    for index in range(2):
        _gated(federation, index)
    assert longer.wait() == 0, longer.text
    assert [row["round"] for row in federation.rows] == [1, 2, 3, 4]


def test_a_server_killed_before_it_saved_anything_begins_by_the_same_command(federation):
    flags = ("--rounds", 1, "--num-partitions", 2)
    first = federation.server(*flags, wait=False)
    until(federation.run_dir.exists, "the run directory")
    first.signal(signal.SIGKILL)
    first.wait()
    again = federation.server(*flags, "--resume")
    federation.client("0-1")
    assert again.wait() == 0, again.text
    assert [row["round"] for row in federation.rows] == [1]
    # For its owner alone.
    assert federation.run_dir.stat().st_mode & 0o777 == 0o700
    files = [path for path in federation.run_dir.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_run_resumed_between_rounds_ends_with_the_same_model(federation, another_federation):
    flags = ("--min-clients", 2, "--num-partitions", 2, "--strategy", "fedavgm")
    undisturbed = another_federation.server("--rounds", 4, *flags)
    another_federation.client("0-1")
    assert undisturbed.wait() == 0, undisturbed.text

    first = federation.server("--rounds", 2, *flags)
    federation.client("0-1")
    assert first.wait() == 0, first.text
    second = federation.server("--resume", "--rounds", 4)
    federation.client("0-1")
    assert second.wait() == 0, second.text
    assert federation.model == another_federation.model
    assert [row["round"] for row in federation.rows] == [1, 2, 3, 4]
    # There is nothing left to do, and that is no error.
    resume = ("server", "--run-dir", federation.run_dir, "--resume")
    assert federation.start(*resume, "--task", TASK).wait() == 0
    # Nor does a run directory's own word run a task's code.
    unnamed = federation.start(*resume)
    assert unnamed.wait() == 2
    assert unnamed.errors == [
        f"error: the run's task is {TASK}, whose code would run here; if you trust it, "
        f"add --task {TASK}"
    ]


def test_a_client_whose_work_fails_is_dropped_and_the_run_fails_without_a_quorum(federation):
    task = "tests.tasks:Diverging"
    server = federation.server("--max-attempts", 2, "--num-partitions", 2, task=task)
    client = federation.client("0-1", task=task)
    assert server.wait() == 1
    assert "--max-attempts" in server.errors[0]
    assert client.wait() == 1
    assert "the run failed" in client.errors[0]
    assert client.events("work failed")[0]["reason"] == "UPDATE_NOT_FINITE"


def test_a_run_whose_model_became_worthless_says_so_and_what_to_change(federation):
    task = "tests.tasks:Exploding"
    flags = ("--rounds", 5, "--max-attempts", 2, "--num-partitions", 2)
    server = federation.server(*flags, task=task)
    client = federation.client("0-1", task=task)
    assert server.wait() == 1
    why = "the model has become worthless: its loss is"
    remedy = "start again with a smaller --lr, or with a --max-norm-ratio below 100"
    assert "abandoned 2 times" in server.errors[0]
    assert why in server.errors[0]
    assert server.errors[0].endswith(remedy)
    warnings = [line for line in server.text.splitlines() if why in line and "warning" in line]
    assert len(warnings) == 1
    assert client.wait() == 1
    assert why in client.errors[0]


def test_a_task_that_raises_ends_its_client_with_one_line(federation):
    task = "tests.tasks:Broken"
    federation.server("--num-partitions", 2, task=task)
    client = federation.client("0-1", task=task)
    assert client.wait() == 1
    assert len(client.errors) == 1
    expected = "error: the task's code raised RuntimeError: shapes do not fit (/"
    assert client.errors[0].startswith(expected)


def test_a_client_that_is_unwilling_to_train_the_servers_task_is_refused(federation):
    federation.server()
    client = federation.client(0, task="digits")
    assert client.wait() == 2
    assert len(client.errors) == 1
    assert client.errors[0].startswith("error: --task: this server trains 'tests.tasks:Tiny'")


def test_a_partition_too_many_is_refused_before_others_of_the_process_join(federation):
    server = federation.server("--num-partitions", 2)
    client = federation.client("0-2")
    assert client.wait() == 2
    assert len(client.errors) == 1
    assert client.errors[0].startswith("error: --partition: partition 2 is not one of")
    assert server.events("client joined") == []


def test_a_second_process_under_one_client_id_ends_the_first(federation):
    federation.server()
    first = federation.client(0)
    federation.wait_for(lambda run: run.live_client_count == 1)
    federation.client(0)
    assert first.wait() == 1
    assert "another process has joined under this client id" in first.errors[0]


def test_an_unreachable_server_ends_the_client_with_one_line(federation):
    federation.address = "127.0.0.1:9"
    client = federation.client(0, "--max-wait", 1)
    assert client.wait() == 1
    assert len(client.errors) == 1
    assert client.errors[0].startswith("error: no server at 127.0.0.1:9 for")


def test_a_port_in_use_ends_the_server_with_one_line(federation):
    federation.server()
    second = federation.start(
        *("server", "--bind", federation.address, "--task", TASK),
        *("--run-dir", federation.folder / "second"),
    )
    assert second.wait() == 2
    assert second.errors[0].startswith(f"error: --bind: can't listen on {federation.address}")


def test_a_run_directory_in_use_or_with_a_run_is_refused(federation):
    server = federation.server()
    second = federation.server(wait=False)
    assert second.wait() == 2
    assert "another server is using" in second.errors[0]
    server.signal(signal.SIGKILL)
    server.wait()
    third = federation.server(wait=False)
    assert third.wait() == 2
    assert "holds a run already" in third.errors[0]


def test_an_unreadable_data_directory_ends_either_side_with_one_line(federation):
    # A file where a folder should be can be read by nobody, not even by root.
    broken = federation.folder / "data"
    broken.touch()
    server = federation.server("--data-dir", broken, task="mnist", wait=False)
    assert server.wait() == 2
    assert server.errors[0].startswith(f"error: --data-dir: no readable MNIST in {broken}")
    federation.run_dir = federation.folder / "second"
    federation.server("--evaluate-every", 0, task="mnist")
    client = federation.client(0, "--data-dir", broken, task="mnist")
    assert client.wait() == 2
    assert client.errors[0].startswith(f"error: --data-dir: no readable MNIST in {broken}")


def test_a_damaged_checkpoint_is_refused_by_name_with_a_remedy_that_works(federation):
    server = federation.server("--rounds", 2, "--num-partitions", 2)
    federation.client("0-1")
    assert server.wait() == 0, server.text
    path = federation.run_dir / "rounds" / "00002" / "model.safetensors"
    good = path.read_bytes()
    for damaged in (good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
        path.write_bytes(damaged)
        again = federation.server("--resume", "--rounds", 4, wait=False)
        assert again.wait() == 2
        assert len(again.errors) == 1
        assert str(path) in again.errors[0]
        assert f"move {path.parent} out of the run directory" in again.errors[0]
    shutil.move(path.parent, federation.folder)
    server = federation.server("--resume", "--rounds", 4)
    federation.client("0-1")
    assert server.wait() == 0, server.text
    assert [row["round"] for row in federation.rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("command", ["server --fraction 2", "client --partition x"])
def test_wrong_input_ends_a_process_with_status_2_and_one_line(federation, command):
    process = federation.start(*command.split())
    assert process.wait() == 2
    assert process.text.startswith("error: ")
    assert process.text.count("\n") == 1


def test_a_flag_that_contradicts_the_resumed_run_is_refused_by_name(federation):
    federation.server("--lr", 0.5).signal(signal.SIGKILL)
    federation.processes[0].wait()
    again = federation.server("--resume", "--lr", 0.25, wait=False)
    assert again.wait() == 2
    assert again.errors[0].startswith("error: --lr: the run in")
    assert "has 0.5, not 0.25" in again.errors[0]


def test_a_run_directory_that_cannot_be_made_is_refused(federation):
    federation.run_dir = federation.folder / "file" / "run"
    federation.run_dir.parent.touch()
    server = federation.server(wait=False)
    assert server.wait() == 2
    assert server.errors[0].startswith("error: --run-dir: can't write")


def test_the_environment_and_a_file_set_the_same_options(federation):
    config = federation.folder / "run.toml"
    config.write_text("rounds = 1\nnum-partitions = 2\nlr = 0.5\n")
    server = federation.server("--config", config, FOLKMOOT_LR="0.25")
    federation.client("0-1")
    assert server.wait() == 0, server.text
    saved = (federation.run_dir / "config.json").read_text()
    assert '"rounds": 1' in saved
    assert '"lr": 0.25' in saved
    assert os.environ.get("FOLKMOOT_LR") is None
