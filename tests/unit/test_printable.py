"""What strangers say reaches no terminal with its control characters."""

import io

import pytest
from rich.console import Console

from common.errors import RunFailed
from common.logs import configure_logs, get_logger
from common.printable import printable
from common.process import exit_status
from protos import federated_pb2 as pb
from scripts.admin_views import LiveView, run_line

# Clears the screen, sets the title, turns the direction, goes to the line's start.
NASTY = "no\x1b[2J\x1b]0;title\x07\u202efdp\rerror: \x9b1mall is well\nby the way"


def test_a_text_is_one_printable_line():
    assert printable(NASTY).isprintable()
    assert printable(NASTY).startswith("no\N{REPLACEMENT CHARACTER}[2J")
    assert printable("für 日本 ok") == "für 日本 ok"


def test_an_error_is_one_line_whoever_worded_it(capsys):
    def fail():
        raise RunFailed(NASTY)

    assert exit_status(fail) == 1
    assert capsys.readouterr().err == f"error: {printable(NASTY)}\n"


def test_the_log_that_a_person_reads_has_no_control_characters(capsys):
    try:
        configure_logs(readable=True)
        get_logger().warning("client failed", reason=NASTY, message=NASTY)
    finally:
        configure_logs()
    said = capsys.readouterr().err
    assert said.rstrip("\n").isprintable()
    assert "client failed" in said


@pytest.mark.parametrize("field", ["run_id", "failure_message"])
def test_an_operators_views_show_what_a_server_says_without_control_characters(field):
    run = pb.Run(**{"run_id": "run", field: NASTY})
    assert run_line(run).isprintable()
    out = io.StringIO()
    view = LiveView(
        run, [pb.Client(client_id=NASTY, state=pb.Client.STATE_DONE)], [], problem=NASTY
    )
    Console(file=out, width=200, height=30).print(view)
    assert "".join(out.getvalue().split("\n")).isprintable()
