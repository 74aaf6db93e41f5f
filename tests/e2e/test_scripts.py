"""The commands of the README, as real processes."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.harness import PATIENCE, ROOT, TASK, interrupt, until

DATA = Path(os.environ.get("FOLKMOOT_TEST_DATA", ROOT.parent / "shared" / "data"))


def _processes_of(run_dir):
    """Return the pids whose command line or log names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode()
                output = str((entry / "fd" / "2").readlink())
            except OSError:
                continue
            if str(run_dir) in command + output:
                found.append(int(entry.name))
    return found


def test_quickstart_trains_the_digits_to_95_percent_and_leaves_no_process(federation):
    process = federation.start("scripts.quickstart", "--run-dir", federation.run_dir)
    assert process.wait(180) == 0, process.text
    accuracy = re.search(r"Final accuracy on the test set: (0\.\d+)", process.text)
    assert float(accuracy.group(1)) >= 0.95
    assert len(federation.rows) == 10
    assert (federation.run_dir / "models" / "global.pth").exists()
    assert f"--run-dir {federation.run_dir} --resume --rounds 20" in process.text
    assert _processes_of(federation.run_dir) == []


def test_quickstart_ends_its_processes_on_ctrl_c(federation):
    process = federation.start(
        *("scripts.quickstart", "--run-dir", federation.run_dir, "--rounds", 1000),
        *("--num-partitions", 2),
    )
    until((federation.run_dir / "metrics.jsonl").exists, "the first round")
    assert len(_processes_of(federation.run_dir)) == 4
    status, seconds = interrupt(process, signal.SIGINT)
    assert status == 130
    assert seconds < 8
    assert f"Go on: ./scripts/quickstart --run-dir {federation.run_dir} --resume" in process.text
    assert _processes_of(federation.run_dir) == []


_STARTER = """
import subprocess, sys
python = [sys.executable, "-u", "-m"]
leashed = [*python, "scripts.leash", "http.server", "--bind", "127.0.0.1", "0"]
process = subprocess.Popen(leashed, stdin=subprocess.PIPE)
sys.stdin.read()
"""


def test_what_a_script_started_ends_with_it_even_when_it_is_killed():
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _STARTER]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as starter:
        assert b"Serving HTTP" in starter.stdout.readline()
        starter.kill()
        # At its end, when the last process that could write to it has ended.
        starter.stderr.read()


def test_quickstart_says_what_went_wrong_in_a_process(federation):
    run = ("--run-dir", federation.run_dir, "--num-partitions", 1)
    process = federation.start("scripts.quickstart", *run, "--model", "resnet")
    assert process.wait() == 2
    assert process.errors == ["error: --model: digits has no model 'resnet'; use one of cnn"]
    assert not federation.run_dir.exists()
    process = federation.start("scripts.quickstart", *run, "--task", "tests.tasks:Broken")
    assert process.wait() == 1
    assert "the task's code raised RuntimeError" in process.errors[0]
    assert (federation.run_dir / "logs" / "server.log").exists()
    assert _processes_of(federation.run_dir) == []


def test_quickstart_leaves_a_folder_that_was_there_as_it_was(federation):
    federation.run_dir.mkdir()
    process = federation.start(
        *("scripts.quickstart", "--run-dir", federation.run_dir, "--model", "resnet")
    )
    assert process.wait() == 2
    assert federation.run_dir.exists()


def test_compare_trains_the_pooled_data_as_far_and_writes_both_curves(federation):
    process = federation.start(
        *(
            "scripts.reproduction.compare",
            "--run-dir",
            federation.run_dir,
            "--output",
            federation.folder,
        ),
        *("--task", "tests.tasks:Tiny", "--num-partitions", 1, "--rounds", 3),
        *("--centralised-lr", 0.2),
    )
    assert process.wait(180) == 0, process.text
    text = (federation.folder / "comparison.md").read_text()
    rounds = [line.split("|")[1:4] for line in text.splitlines() if re.match(r"\| \d", line)]
    assert [[int(number), int(examples)] for number, examples, _ in rounds] == [
        [1, 180],
        [2, 360],
        [3, 540],
    ]
    assert [float(accuracy) for *_, accuracy in rounds] == [
        round(row["global_accuracy"], 4) for row in federation.rows
    ]
    assert "learning rate 0.1, centralised 0.2" in text
    assert (federation.folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert _processes_of(federation.run_dir) == []


def _admin(federation, *arguments):
    command = [sys.executable, "-m", "scripts.admin", *arguments]
    return subprocess.run(
        [*command, "--run-dir", federation.run_dir],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def _watch(federation, *flags, **streams):
    command = (sys.executable, "-m", "scripts.admin", "watch", "--run-dir", federation.run_dir)
    environment = {**os.environ, "TERM": "xterm"}
    return subprocess.Popen([*command, *flags], cwd=ROOT, env=environment, **streams)


def test_admin_shows_watches_and_stops_a_run(federation):
    server = federation.server("--rounds", 10_000, "--num-partitions", 2)
    shown = _admin(federation, "status")
    assert shown.returncode == 0
    assert shown.stdout.startswith("run: waiting | round 1 of 10000 selecting")
    federation.client("0-1")
    federation.wait_for(lambda run: run.model.version >= 2)
    status = json.loads(_admin(federation, "status", "--json").stdout)
    assert (status["run_id"], status["state"]) == ("run", "STATE_ACTIVE")
    found = _admin(federation, "clients", "--json").stdout.splitlines()
    assert [json.loads(line)["client_id"] for line in found] == ["client-0", "client-1"]
    assert "client-1" in _admin(federation, "clients").stdout
    listed = _admin(federation, "rounds", "--json", "--last", "2").stdout.splitlines()
    numbers = [int(json.loads(line)["number"]) for line in listed]
    assert numbers[0] == numbers[1] + 1
    assert "committed" in _admin(federation, "rounds", "--last", "3").stdout
    with _watch(federation, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watch:
        assert watch.stdout.readline().startswith(b"run: active")
        watch.send_signal(signal.SIGINT)
        assert watch.communicate(timeout=PATIENCE)[1] == b""
        assert watch.returncode == 130
    stopped = _admin(federation, "stop", "--json")
    assert json.loads(stopped.stdout)["state"] in ("STATE_STOPPING", "STATE_SUCCEEDED")
    assert server.wait() == 0, server.text
    gone = _admin(federation, "status")
    assert gone.returncode == 2
    assert gone.stderr.startswith("error: --run-dir: no server is running in ")


def test_admin_says_how_to_go_on_after_a_killed_server(federation):
    federation.server().end()
    killed = _admin(federation, "status")
    assert killed.returncode == 2
    again = f"python -m server --run-dir {federation.run_dir} --resume --task {TASK}"
    assert killed.stderr == (
        f"error: the server of {federation.run_dir} was killed; go on with: {again}\n"
    )


def test_admin_watch_follows_the_run_over_a_killed_server_to_its_end(federation):
    server = federation.server("--rounds", 2, "--num-partitions", 2)
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with (
        open(terminal, "rb", buffering=0) as screen,  # noqa: PTH123 - a descriptor
        _watch(federation, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as lines,
        _watch(federation, stdin=side, stdout=side, stderr=side) as live,
    ):
        os.close(side)
        assert json.loads(lines.stdout.readline())["state"] == "STATE_WAITING"
        shown = b""
        while b"round 1 selecting" not in shown:
            shown += screen.read(65536)
        server.end()
        # A terminal that nobody reads is full after two screens, and holds its writer up.
        while b"trying again" not in shown:
            shown += screen.read(65536)
        lost = lines.stderr.readline()
        assert re.fullmatch(rb"no connection: [^:]{5,40}; trying again\n", lost), lost
        federation.server("--resume")
        assert lines.stderr.readline() == b"connected again\n"
        # The run may be over before one that waits to try again does.
        back = b""
        while b"waiting" not in back:
            back += screen.read(65536)
        shown += back
        federation.client("0-1")
        while chunk := _read(screen):
            shown += chunk
        seen = [json.loads(line) for line in lines.stdout]
        assert [lines.wait(PATIENCE), live.wait(PATIENCE)] == [0, 0]
    assert (seen[-1]["state"], seen[-1]["model"]["version"]) == ("STATE_SUCCEEDED", "2")
    visible = [{k: v for k, v in run.items() if k != "revision"} for run in seen]
    assert all(before != after for before, after in pairwise(visible))
    # The live view is on a screen of its own; what it showed last stays when it has ended.
    whole, _, left = shown.partition(b"\x1b[?1049l")
    assert whole.count(b"\x1b[?1049h") == 1
    assert b"trying again" in whole
    assert b"no connection" in whole
    assert b"succeeded" in left
    assert b"2 of 2" in left


def test_watch_leaves_a_view_whose_head_is_still_on_the_screen(federation):
    federation.server("--rounds", 10_000, "--num-partitions", 2)
    federation.client("0-1")
    federation.wait_for(lambda run: run.model.version >= 30)
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with (
        open(terminal, "rb", buffering=0) as screen,  # noqa: PTH123 - a descriptor
        _watch(federation, stdin=side, stdout=side, stderr=side) as live,
    ):
        os.close(side)
        shown = b""
        while b"committed" not in shown:
            shown += screen.read(65536)
        live.send_signal(signal.SIGINT)
        while chunk := _read(screen):
            shown += chunk
        assert live.wait(PATIENCE) == 130
    before, *view = shown.partition(b"\x1b[?1049l")[2].decode().splitlines()
    assert before == ""
    assert "run" in view[0]
    # A line is left for the prompt.
    assert len(view) == 23


@pytest.mark.parametrize(
    "command",
    [
        ("scripts.admin", "--help"),
        ("server", "--help"),
        ("scripts.show_split", "--num-partitions", "20"),
    ],
    ids=" ".join,
)
def test_a_command_ends_quietly_when_nobody_reads_on(command):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:  # noqa: PTH123 - a descriptor
        ended = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (1, b"")


def _read(terminal):
    """Return what a process has written to its terminal; nothing once it has ended."""
    try:
        return terminal.read(65536)
    except OSError:  # Linux says so when the other side is closed.
        return b""


def test_the_readmes_own_task_trains(federation):
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(# moons.py.*?)```", readme, re.DOTALL).group(1)
    (federation.folder / "moons.py").write_text(code)
    environment = {"PYTHONPATH": str(federation.folder), "fresh": True}
    flags = ("--num-partitions", 2, "--lr", 0.3, "--rounds", 5)
    server = federation.server(*flags, task="moons:Moons", **environment)
    clients = [federation.client(i, task="moons:Moons", **environment) for i in (0, 1)]
    assert server.wait() == 0, server.text
    assert [client.wait() for client in clients] == [0, 0]
    assert federation.rows[-1]["global_accuracy"] > 0.8


@pytest.mark.skipif(not (DATA / "MNIST").exists(), reason=f"no MNIST in {DATA}")
def test_mnist_trains_from_a_data_directory(federation):
    server = federation.server(
        *("--model", "mlp", "--rounds", 1, "--num-partitions", 5, "--partitioner", "iid"),
        *("--data-dir", DATA),
        task="mnist",
    )
    client = federation.client("0-1", "--data-dir", DATA, task="mnist")
    assert server.wait(180) == 0, server.text
    assert client.wait() == 0
    assert federation.rows[0]["num_examples"] == 2 * 10_800
    assert federation.rows[0]["global_accuracy"] > 0.88
