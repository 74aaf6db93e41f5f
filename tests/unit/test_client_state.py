"""What a client keeps between rounds, on its own disk."""

import pytest
import torch

from client.state import ClientState
from common.errors import RunFailed


def tensors(value):
    return {"w": torch.full((3,), float(value)), "n": torch.tensor(7)}


def opened(folder, run_id="run", name="client-0-control"):
    return ClientState(folder, run_id, name)


def value_of(kept):
    return kept["w"][0].item()


def test_what_was_kept_in_a_round_is_there_for_another_process(tmp_path):
    opened(tmp_path).save(3, tensors(3), 0)
    kept = opened(tmp_path).load(3)
    assert {name: tensor.tolist() for name, tensor in kept.items()} == {"w": [3.0] * 3, "n": 7}


def test_the_server_says_which_of_two_rounds_holds(tmp_path):
    state = opened(tmp_path)
    state.save(3, tensors(3), 0)
    state.save(5, tensors(5), 3)
    assert [value_of(state.load(number)) for number in (3, 5)] == [3.0, 5.0]
    # The update of round 5 did not count; that of round 6 does.
    state.save(6, tensors(6), 3)
    assert state.load(5) is None
    assert [value_of(state.load(number)) for number in (3, 6)] == [3.0, 6.0]


def test_a_round_that_is_trained_again_replaces_itself(tmp_path):
    state = opened(tmp_path)
    state.save(3, tensors(1), 0)
    state.save(3, tensors(2), 0)
    assert value_of(state.load(3)) == 2.0


def test_round_0_begins_anew(tmp_path):
    state = opened(tmp_path)
    state.save(3, tensors(3), 0)
    assert state.load(0) == {}
    assert state.load(3) is None


def test_what_is_lost_or_damaged_is_none_and_not_a_guess(tmp_path):
    state = opened(tmp_path)
    assert state.load(3) is None
    state.save(3, tensors(3), 0)
    (path,) = tmp_path.rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert state.load(3) is None


def test_runs_and_clients_keep_apart(tmp_path):
    opened(tmp_path, "one").save(3, tensors(1), 0)
    assert opened(tmp_path, "two").load(3) is None
    assert opened(tmp_path, "one", "client-1-control").load(3) is None


@pytest.mark.parametrize("run_id", ["../../up", "/etc", "a" * 5000, ".."])
def test_a_servers_name_for_its_run_leads_nowhere_else(tmp_path, run_id):
    folder = tmp_path / "state"
    opened(folder, run_id).save(1, tensors(1), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert value_of(opened(folder, run_id).load(1)) == 1.0


def test_a_disk_that_can_not_be_written_is_named_with_its_flag(tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(RunFailed, match="--state-dir: can't write"):
        opened(tmp_path / "state").save(1, tensors(1), 0)
