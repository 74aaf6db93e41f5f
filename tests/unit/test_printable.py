"""What another machine said reaches no terminal raw."""

from common.errors import RunFailed
from common.logs import configure_logs, get_logger
from common.printable import printable
from common.process import exit_status

RAW = "\x1b]0;owned\x07\x1b[2J\u202eback\r\nnext"


def test_a_text_is_one_line_of_what_can_be_shown():
    assert printable("a  plain\ntext of Ölbäume, 木") == "a plain text of Ölbäume, 木"
    assert printable(RAW).isprintable()
    assert printable("x" * 11, 10) == "x" * 10 + "…"


def test_an_error_is_one_line(capsys):
    def fail():
        raise RunFailed(f"the run failed: {RAW}")

    assert exit_status(fail) == 1
    line = capsys.readouterr().err
    assert line.removesuffix("\n").isprintable()


def test_a_readable_log_has_no_control_characters(capsys):
    configure_logs(readable=True)
    get_logger().warning("work failed", message=RAW.replace(" ", ""), reason="\x1b[2J")
    line = capsys.readouterr().err
    assert line.removesuffix("\n").isprintable()
