"""A disk that is full or fails: nothing is lost, nothing is counted that is not there."""

import errno
import os

import pytest

from common.durable import DurableFile
from protos import federated_pb2 as pb
from server.run import uploads
from tests.service.harness import OUTCOME, LiveServer, update


@pytest.fixture
def pair(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        first, second = server.join("a"), server.join("b", partition=1)
        yield server, (first, first.assignment()), (second, second.assignment())


def failing(code, times=1):
    """Return a function that raises OSError so many times, and from then on calls another."""
    left = [times]

    def instead_of(call):
        def run(*arguments):
            if left[0]:
                left[0] -= 1
                raise OSError(code, os.strerror(code))
            return call(*arguments)

        return run

    return instead_of


@pytest.mark.parametrize("method", ["__init__", "write_at", "sync"])
def test_an_update_that_does_not_fit_on_the_disk_is_taken_once_it_does(pair, monkeypatch, method):
    server, (client, assignment), (other, other_assignment) = pair
    full = failing(errno.ENOSPC)(getattr(DurableFile, method))
    monkeypatch.setattr(DurableFile, method, full)
    response = client.push(assignment, update())
    assert response.outcome == OUTCOME.OUTCOME_NOT_STORED
    assert not response.upload.complete
    assert client.uploaded(assignment) == response.upload
    again = client.push(assignment, update())
    assert again.outcome == OUTCOME.OUTCOME_ACCEPTED
    assert other.push(other_assignment, update()).outcome == OUTCOME.OUTCOME_ACCEPTED
    assert server.wait_for(lambda run: run.model.version == 1)


def test_the_run_fails_rather_than_count_an_update_that_is_not_on_the_disk(pair, monkeypatch):
    server, (client, assignment), _ = pair
    monkeypatch.setattr(uploads, "sync_folder", failing(errno.EIO)(uploads.sync_folder))
    assert client.push(assignment, update()).outcome == OUTCOME.OUTCOME_NOT_STORED
    with pytest.raises(OSError, match="Input/output error"):
        server.ended()


def test_an_uploads_state_is_told_to_nobody_but_its_client(pair):
    server, (client, assignment), (other, other_assignment) = pair
    client.push(assignment, update(), chunk_size=50, stop_after=1)
    for _ in range(2):  # While it goes on, and once it is finished.
        request = pb.GetUploadRequest(session_token=other.token, task_token=assignment.task_token)
        with pytest.raises(Exception, match="no such assignment"):
            server.stub.GetUpload(request, timeout=10)
        assert other.push(assignment, update()).outcome == OUTCOME.OUTCOME_NOT_WANTED
        client.push(assignment, update(), write_offset=50)
    assert client.uploaded(assignment).complete
