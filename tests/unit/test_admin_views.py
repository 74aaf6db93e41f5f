"""What an operator reads of a run, as text of a terminal's size."""

import pytest
from google.protobuf.duration_pb2 import Duration
from rich.console import Console

from protos import federated_pb2 as pb
from scripts.admin_views import LiveView, clients_table, rounds_table, run_line

RUN = pb.Run(
    run_id="20261122-120000-digits",
    task_name="digits",
    state=pb.Run.STATE_ACTIVE,
    target_round_count=20,
    live_client_count=3,
    model=pb.ModelRef(version=6),
    round=pb.Round(
        number=7,
        attempt=1,
        phase=pb.Round.PHASE_REPORTING,
        cohort_size=4,
        report_goal=4,
        accepted_count=2,
        time_remaining=Duration(seconds=83),
    ),
)


def client(name, state="WAITING", **fields):
    return pb.Client(client_id=name, state=pb.Client.State.Value(f"STATE_{state}"), **fields)


def committed(number, seconds=4.0):
    metrics = {"global_accuracy": 0.9528, "global_loss": 0.1396, "duration_seconds": seconds}
    return pb.Round(
        number=number,
        phase=pb.Round.PHASE_COMMITTED,
        cohort_size=4,
        accepted_count=4,
        metrics=metrics,
    )


def lines(shown, width=80, height=24):
    """Return what a terminal of this size shows, checked to fit on it."""
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(shown, end="")
    found = [line.rstrip() for line in capture.get().splitlines()]
    assert len(found) <= height
    assert max(map(len, found)) <= width
    return found


def view(clients=(), rounds=(), run=RUN, problem=""):
    return LiveView(run, list(clients), list(rounds), problem)


def test_the_live_view_has_the_run_its_bars_its_clients_and_its_last_rounds():
    trained = client(
        "client-3",
        "TRAINING",
        partition=3,
        num_examples=271,
        train_loss=0.25,
        state_duration=Duration(seconds=65),
        bytes_down=24_800,
    )
    heading, rounds, updates, _, columns, first, second, _, names, last = lines(
        view([client("client-0", "LOST"), trained], [committed(6)])
    )
    assert heading == "20261122-120000-digits  digits  active  round 7 reporting  3 clients"
    assert rounds.endswith("6 of 20, about 56 s left")
    assert updates.endswith("2 of 4, deadline in 1 min 23 s")
    assert columns.split() == ["client", "state", "for", "part", "examples", "loss", "down", "up"]
    assert first.split("  ")[0] == "client-3"
    assert first.split()[1:] == [
        "training",
        "1",
        "min",
        "5",
        "s",
        "3",
        "271",
        "0.2500",
        "24.8",
        "kB",
        "-",
    ]
    assert second.split() == ["client-0", "lost", "0", "s", "-", "-", "-", "-", "-"]
    assert names.split()[:4] == ["round", "ended", "updates", "accuracy"]
    assert last.split() == ["6", "committed", "4", "of", "4", "0.9528", "0.1396", "-", "4.0"]


def test_of_many_clients_those_that_work_come_first_and_the_others_are_counted():
    crowd = [client(f"client-{index}") for index in range(120)]
    crowd[100] = client("client-100", "PUSHING")
    crowd[20] = client("client-20", "EVALUATING")
    crowd[7] = client("client-7", "FAILED")
    crowd[8] = client("client-8", "DONE")
    shown = lines(view(crowd, map(committed, range(50, 0, -1))))
    assert len(shown) == 24
    begin = next(index for index, line in enumerate(shown) if line.startswith("client "))
    names = [line.partition(" ")[0] for line in shown[begin + 1 :]]
    assert names[:7] == [
        *("client-20", "client-100", "client-7", "client-8"),
        *("client-0", "client-1", "client-2"),
    ]
    count = names.index("...")
    assert shown[begin + 1 + count] == f"... and {120 - count} more: {120 - count} waiting"
    assert shown[-1].startswith("46 ")  # The newest five of fifty.


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("height", [10, 24, 60])
def test_the_live_view_fits_any_terminal_and_cuts_only_ids_short(width, height):
    crowd = [
        client("x" * 128, "EVALUATING", partition=539, num_examples=60_000, train_loss=12.3456),
        *(client(f"client-{index}", bytes_up=10**9) for index in range(9)),
    ]
    run = pb.Run()
    run.CopyFrom(RUN)
    run.round.refused_count, run.round.dropped_count = 12, 34
    shown = lines(
        view(crowd, map(committed, range(50, 0, -1)), run, "no server " * 30), width, height
    )
    if width >= 60:
        first = next(line for line in shown if line.startswith("xx"))
        assert ("x" * 128 in first) == (width == 200)
        assert first.split()[1:7] == ["evaluating", "0", "s", "539", "60000", "12.3456"]


def test_why_a_run_failed_is_said_on_top():
    run = pb.Run()
    run.CopyFrom(RUN)
    run.state, run.failure_message = pb.Run.STATE_FAILED, "round 7 was abandoned [3] times"
    shown = lines(view([client("a")], (), run))
    assert "failed" in shown[0]
    assert shown[1] == "round 7 was abandoned [3] times"


def test_without_a_connection_what_was_seen_last_does_not_look_as_if_it_were_so_now():
    shown = lines(view([client("a")], [committed(6)], RUN, "trying again: [Connection] refused"))
    assert shown[0].startswith("20261122-120000-digits  digits  no connection  round 7 ")
    assert shown[1] == "trying again: [Connection] refused"
    assert shown[2].endswith("6 of 20")
    assert shown[3].endswith("2 of 4")
    assert any(line.startswith("a ") for line in shown)


def test_without_rounds_no_time_to_go_is_guessed_nor_without_training():
    assert lines(view())[1].endswith("6 of 20")
    waiting = pb.Run()
    waiting.CopyFrom(RUN)
    waiting.state = pb.Run.STATE_WAITING
    assert lines(view((), [committed(6)], waiting))[1].endswith("6 of 20")


def test_a_line_tells_the_run_and_why_it_failed():
    assert run_line(RUN).startswith(
        "20261122-120000-digits: active | round 7 of 20 reporting | 2 of 4 updates | 3 clients"
    )
    failed = pb.Run(failure_message="the disk is full", round=pb.Round(attempt=2))
    assert run_line(failed).endswith(" | the disk is full")
    assert "attempt 2" in run_line(failed)


def test_tables_that_are_not_on_a_terminal_are_whole():
    found = lines(clients_table([client("x" * 60)]), width=200, height=9)
    assert "x" * 60 in found[1]
    abandoned = pb.Round(number=3, phase=pb.Round.PHASE_ABANDONED, cohort_size=4)
    row = lines(rounds_table([abandoned]))[1]
    assert row.split() == ["3", "abandoned", "0", "of", "4", "-", "-", "-", "-"]
