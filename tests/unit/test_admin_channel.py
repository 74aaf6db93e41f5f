"""What an operator is told of a connection that fails."""

import json
import subprocess
import sys

import grpc
import pytest

from common.errors import InputError
from scripts.admin_channel import reason, server_of


class Failed(grpc.RpcError):
    """As a call raises it."""

    def __init__(self, details, code=grpc.StatusCode.UNAVAILABLE):
        self.code = lambda: code
        self.details = lambda: details


@pytest.mark.parametrize(
    ("details", "told"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7071: "
            "Failed to connect to remote host: Connection refused",
            "Connection refused",
        ),
        ("Stream removed (Socket closed)", "Socket closed"),
        (
            "Stream removed (recvmsg:Connection reset by peer (104))",
            "Connection reset by peer (104)",
        ),
        ("Socket closed", "Socket closed"),
    ],
)
def test_of_a_server_that_is_not_there_only_the_last_words_are_told(details, told):
    assert reason(Failed(details)) == told


def test_what_a_server_says_is_told_in_full():
    said = "too many watchers: at most 8"
    assert reason(Failed(said, grpc.StatusCode.RESOURCE_EXHAUSTED)) == said


@pytest.mark.parametrize(("task", "named"), [("digits", ""), ("mine:Task", " --task mine:Task")])
def test_the_command_that_goes_on_with_a_killed_run_names_its_task(tmp_path, task, named):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ready = {"pid": child.pid, "admin_address": "127.0.0.1:1"}
    (tmp_path / "server.json").write_text(json.dumps(ready))
    (tmp_path / "operator.token").write_text("token")
    (tmp_path / "config.json").write_text(json.dumps({"options": {"task": task}}))
    with pytest.raises(InputError) as caught:
        server_of(tmp_path)
    assert str(caught.value).endswith(
        f"go on with: python -m server --run-dir {tmp_path} --resume{named}"
    )
