"""Wrong input ends either command with status 2 and one line that names what to change."""

import pytest

import client.__main__
import server.__main__

WRONG_INPUT = {
    "server --fraction 2": "--fraction",
    "server --rounds none": "--rounds",
    "server --rounds 1.5": "--rounds",
    "server --min-clients 3 --num-partitions 2": "--min-clients: 3 clients are more than",
    "server --report-goal 6": "--report-goal: 6 clients are more than --num-partitions 5",
    "server --frobnicate": "--frobnicate",
    "server --task nowhere": "--task: no task 'nowhere'",
    "server --task nowhere.module:thing": "--task: 'nowhere.module:thing'",
    "server --model resnet": "--model: digits has no model 'resnet'; use one of cnn",
    "server --partitioner natural": "--partitioner natural: task Digits does not say whose",
    "server --task tests.tasks:Pairs --partitioner shards": "--partitioner: shards divides by",
    "server --task tests.kinds:OwnLoss --partitioner dirichlet": "have real numbers as targets",
    "server --task tests.kinds:Years --partitioner shards": "have real numbers as targets",
    "server --task tests.kinds:Years --partitioner dirichlet --evaluate-every 0": "have real",
    "server --task tests.kinds:Scaled": "--task: the targets of Labels must be 0 or 1, not 255",
    "server --task tests.kinds:Doubles": "--task: the inputs are of dtype float64, and the model's "
    "parameters of float32; convert them in the task's data(), e.g. inputs.float()",
    "server --task tests.kinds:Misfit": "the model's outputs are of shape [n, 2], not 1 numbers",
    "server --task tests.kinds:Column --target-accuracy 0.9": "--target-accuracy: the evaluation",
    "server --task tests.kinds:OwnLoss --target-accuracy 0.9": "--target-accuracy: the evaluation",
    "server --task tests.kinds:Own --target-accuracy 0.9": "--target-accuracy: the evaluation of",
    "server --bind here": "--bind: 'here' is not HOST:PORT",
    "server --bind 0.0.0.0:0": "--bind: 0.0.0.0:0 is reached from other machines, in plain text",
    "server --admin-bind [::]:0 --bind 127.0.0.1:0": "--admin-bind: [::]:0 is reached from",
    "server --tls-cert missing.pem --tls-key k": "--tls-cert: can't read missing.pem",
    "client --partition 0 --server 10.0.0.1:7070": "--server: 10.0.0.1:7070 is another machine",
    "client --partition 0 --tls-ca missing.pem": "--tls-ca: can't read missing.pem",
    "server --config missing.toml": "--config: can't read missing.toml",
    "server --resume --run-dir missing": "--resume: there is no run in missing",
    "server --hyperparameters {": "--hyperparameters: '{' is not JSON",
    "server --quorum 3 --report-goal 2": "--quorum",
    "client": "--partition",
    "client --partition x": "--partition",
    "client --partition 5-3": "--partition",
    "client --partition 0 --server nowhere": "--server",
    "client --partition 0 --server 127.0.0.1": "--server: '127.0.0.1' is not HOST:PORT",
    "client --partition 0 --server 10.0.0.1": "--server: '10.0.0.1' is not HOST:PORT",
    "client --partition 0 --server ::1": "--server: '::1' is not HOST:PORT",
    "client --partition 0 --server [::1]:0": "--server: '[::1]:0' is not HOST:PORT",
    "server --task tests.tasks:Arrays": "--task: data() returned targets of type ndarray; return ",
    "server --task tests.tasks:Unread": "--task: the data of tests.tasks:Unread can't be read: "
    "FileNotFoundError: [Errno 2] No such file or directory: 'data/examples' (",
    "client --partition 0 --task nowhere": "--task",
    "client --partition 0 --device mps": "--device",
}


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ("--task nowhere:thing", 2),
        ("--bind here", 2),
        ("--task tests.kinds:Failing --target-accuracy 0.9", 1),
    ],
)
def test_a_server_that_is_refused_leaves_nothing_but_what_was_there(
    flags, status, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for folder in ("new", "mine"):
        assert server.__main__.main(["--run-dir", folder, *flags.split()]) == status
        assert capsys.readouterr().err.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("command", WRONG_INPUT)
def test_wrong_input_is_one_line_that_names_it(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    side, *flags = command.split()
    main = server.__main__.main if side == "server" else client.__main__.main
    assert main(flags) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert WRONG_INPUT[command] in output.err
