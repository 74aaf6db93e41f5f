"""A server that was killed while it abandons an attempt or begins the next one, and goes on.

Each state of the disk is that of a kill between two steps, or of a hand that deleted a file; the
model at the end is the undisturbed one, byte for byte.
"""

import json
import shutil

import pytest

from common.durable import read_sealed, seal
from common.errors import RunFailed
from tests.service.harness import OUTCOME, LiveServer, update

OPTIONS = {"min_clients": 3, "quorum": 3, "rounds": 1}
VALUES = {"a": 1.0, "b": 5.0, "c": -3.0}


def join_all(server):
    clients = [server.join(name, partition=n) for n, name in enumerate(VALUES)]
    return [(client, client.assignment()) for client in clients]


def push(client, assignment, **how):
    """Push what this client always would."""
    value = VALUES[client.name]
    return client.push(assignment, update(value), num_examples=10 + int(value), **how)


def lived(folder, **options):
    """Run one round, with uploads that overlap; return its model."""
    with LiveServer(folder, **OPTIONS, **options) as server:
        first, *others = join_all(server)
        assert push(*first, chunk_size=50, stop_after=1).upload.committed_size_bytes == 50
        for client in others:
            assert push(*client).outcome == OUTCOME.OUTCOME_ACCEPTED
        assert push(*first, write_offset=50).outcome == OUTCOME.OUTCOME_ACCEPTED
        server.ended()
    return (folder / "models" / "global.safetensors").read_bytes()


def without_cohort(folder):
    (folder / "rounds/00001/cohort.json").unlink()


def half_written_cohort(folder):
    cohort = folder / "rounds/00001/cohort.json"
    cohort.rename(cohort.with_suffix(".json.tmp"))


def moved_away(folder):
    (folder / "rounds/00001").rename(folder / "rounds/abandoned")


def partly_removed(folder):
    moved_away(folder)
    (folder / "rounds/abandoned/cohort.json").unlink()


def begun_again_without_cohort(folder):
    moved_away(folder)
    shutil.rmtree(folder / "rounds/abandoned")
    (folder / "rounds/00001/updates").mkdir(parents=True)


def tensors_alone(folder):
    without_cohort(folder)
    for record in (folder / "rounds/00001/updates").glob("*.json"):
        record.unlink()


def set_aside(folder):
    without_cohort(folder)
    (folder / "rounds/00001/updates").rename(folder / "rounds/spare")


def of_the_attempt_before(folder):
    path = folder / "rounds/00001/cohort.json"
    cohort = read_sealed(path)
    path.write_text(json.dumps(seal(cohort | {"attempt": 2})))


KILLS = [
    *(without_cohort, half_written_cohort, moved_away, partly_removed, set_aside),
    *(begun_again_without_cohort, tensors_alone, of_the_attempt_before),
]


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("accepted", [1, 2])
def test_a_run_that_was_killed_in_an_abandonment_ends_with_the_same_model(tmp_path, kill, accepted):
    expected = lived(tmp_path / "undisturbed")
    folder = tmp_path / "run"
    with LiveServer(folder, **OPTIONS) as server:
        *others, last = join_all(server)
        for client in others[:accepted]:
            assert push(*client).outcome == OUTCOME.OUTCOME_ACCEPTED
        push(*last, chunk_size=50, stop_after=1)
    kill(folder)
    assert lived(folder, resume=True) == expected
    assert sorted(path.name for path in (folder / "rounds").iterdir()) == ["00000", "00001"]


def test_an_update_that_is_damaged_after_it_was_accepted_is_not_counted(tmp_path):
    expected, folder = lived(tmp_path / "undisturbed"), tmp_path / "run"
    with LiveServer(folder, **OPTIONS) as server:
        (client, work), *others = join_all(server)
        push(client, work)
        (path,) = (folder / "rounds/00001/updates").glob("*.safetensors")
        data = path.read_bytes()
        path.write_bytes(data[:-4] + b"\0\0\0\0")
        for other in others:
            assert push(*other).outcome == OUTCOME.OUTCOME_ACCEPTED
        with pytest.raises(RunFailed) as caught:
            server.ended()
    assert str(caught.value) == (
        f"{path}: the update of client 'a' is not what was accepted; "
        "go on with --resume, and it is trained again"
    )
    with LiveServer(folder, **OPTIONS, resume=True) as server:
        assert server.coordinator.status.view.accepted == {"b", "c"}
        client = server.join("a")
        assert push(client, client.assignment()).outcome == OUTCOME.OUTCOME_ACCEPTED
        server.ended()
    assert (folder / "models" / "global.safetensors").read_bytes() == expected
