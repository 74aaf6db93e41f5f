"""The run directory: commit, recovery, damage, and who may use it."""

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from common.durable import read_sealed, seal
from common.errors import CheckpointError, InputError
from common.tensors import digest_bytes, encode
from server.engine.early_stopping import Progress
from server.storage.checkpoints import (
    Cohort,
    Record,
    Recovered,
    RunDirectory,
    export_pth,
    newest_run,
)
from server.storage.columns import Row
from server.storage.run_files import FORMAT, RunFiles

COHORT = Cohort(round=3, attempt=2, cohort=("a", "b"), goal=2, live=("a", "b", "c"))


@contextmanager
def opened(path):
    """A run directory that is locked meanwhile."""
    directory = RunDirectory(path)
    try:
        directory.lock()
        yield directory
    finally:
        directory.unlock()


def begin(directory, number):
    cohort = Cohort(round=number, attempt=1, cohort=("a",), goal=1, live=("a",))
    directory.begin_attempt(cohort)
    updates = directory.updates_folder(number)
    for name in ("mine.safetensors", "mine.json", "cut.safetensors", "other.json.tmp"):
        (updates / name).write_bytes(b"update")
    directory.model_path(number).write_bytes(b"model %d" % number)


def commit(directory, number, keep=3, **values):
    """Commit a round whose model is the bytes "model <number>"; return its record."""
    begin(directory, number)
    record = Record(round=number, model=digest_bytes(b"model %d" % number), **values)
    directory.commit(record)
    directory.remove_old(number, keep)
    return record


def row_of(number):
    numbers = dict.fromkeys((field.name for field in fields(Row)), 0.5)
    return Row(**numbers | {"round": number, "global_metrics": {}, "client_metrics": {"f1": 0.1}})


def full_commit(directory, number):
    """Commit a round whose record has every field set."""
    directory.round_folder(number).mkdir()
    directory.state_path(number, "momentum").write_bytes(b"momentum")
    return commit(
        directory,
        number,
        state={"momentum": digest_bytes(b"momentum")},
        contributed={"a": number},
        live=("a", "b"),
        progress=Progress(best_round=number, best_score=0.1 + 0.2, stale=3),
        row=row_of(number),
        clients=({"round": number, "client_id": "a", "seconds": None},),
        evaluation={"round": number, "per_class_accuracy": [0.5, None]},
    )


def test_a_new_directory_holds_nothing(tmp_path):
    with opened(tmp_path / "run") as directory:
        assert not directory.holds_run()
        assert directory.recover() is None


def test_the_initial_model_is_round_0_once_it_is_committed(tmp_path):
    with opened(tmp_path) as directory:
        directory.begin_initial(b"initial")
        assert directory.recover() is None
        record = Record(round=0, model=digest_bytes(b"initial"))
        assert directory.commit(record).path.read_bytes() == b"initial"
        assert directory.recover() == Recovered(record=record)


def test_what_was_committed_comes_back(tmp_path):
    with opened(tmp_path) as directory:
        commit(directory, 1)
        record = full_commit(directory, 2)
    with opened(tmp_path) as directory:
        assert directory.recover() == Recovered(record=record, cohort=None)
        assert directory.model_path(2).read_bytes() == b"model 2"


def test_an_attempt_in_progress_comes_back(tmp_path):
    with opened(tmp_path) as directory:
        record = commit(directory, 2)
        directory.begin_attempt(COHORT)
        assert directory.recover() == Recovered(record=record, cohort=COHORT)


def test_an_abandoned_attempt_is_gone(tmp_path):
    with opened(tmp_path) as directory:
        record = commit(directory, 2)
        directory.begin_attempt(COHORT)
        directory.abandon_attempt(3)
        assert not directory.round_folder(3).exists()
        assert directory.recover() == Recovered(record=record)


def test_a_half_written_round_is_not_committed(tmp_path):
    with opened(tmp_path) as directory:
        record = commit(directory, 1)
        begin(directory, 2)
        (directory.round_folder(2) / "record.json.tmp").write_text('{"round": 2, "mod')
        assert directory.recover().record == record
        directory.abandon_attempt(2)
        assert commit(directory, 2) == directory.recover().record


def test_rounds_in_progress_other_than_the_next_one_are_deleted(tmp_path):
    with opened(tmp_path) as directory:
        commit(directory, 2)
        for number in (1, 3, 4):
            begin(directory, number)
        directory.recover()
        assert names(tmp_path / "rounds") == ["00002", "00003"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_accepted_updates_are_set_aside_for_the_next_round_to_write_over(tmp_path):
    with opened(tmp_path) as directory:
        commit(directory, 1)
        assert not directory.updates_folder(1).exists()
        assert names(tmp_path / "rounds" / "spare") == ["mine.safetensors"]
        directory.begin_attempt(replace(COHORT, round=2))
        assert names(directory.updates_folder(2)) == []
        assert directory.spares() == [tmp_path / "rounds" / "spare" / "mine.safetensors"]
        directory.abandon_attempt(2)
        directory.begin_attempt(replace(COHORT, round=2, attempt=2))
        assert names(directory.updates_folder(2)) == []
        assert names(tmp_path / "rounds") == ["00001", "00002", "spare"]


def test_a_round_without_a_cohort_is_deleted_whatever_lies_in_it(tmp_path):
    with opened(tmp_path) as directory:
        record = commit(directory, 2)
        begin(directory, 3)
        (directory.round_folder(3) / "cohort.json").unlink()
        assert directory.recover() == Recovered(record=record)
        assert names(tmp_path / "rounds") == ["00002"]


@pytest.mark.parametrize("renamed", [False, True])
def test_an_attempt_that_is_abandoned_is_all_there_or_all_gone(tmp_path, monkeypatch, renamed):
    rename = Path.rename

    def rename_and_die(path, target):
        if renamed:
            rename(path, target)
        raise SystemExit

    with opened(tmp_path) as directory:
        record = commit(directory, 2)
        begin(directory, 3)
        before = names(directory.updates_folder(3))
        monkeypatch.setattr(Path, "rename", rename_and_die)
        with pytest.raises(SystemExit):
            directory.abandon_attempt(3)
        found = directory.recover()
        assert found.record == record
        assert (found.cohort is None) == renamed
        if renamed:
            assert names(tmp_path / "rounds") == ["00002"]
        else:
            assert names(directory.updates_folder(3)) == before


def test_an_attempt_that_can_not_be_dropped_does_not_share_its_folder(tmp_path):
    with opened(tmp_path) as directory:
        commit(directory, 2)
        begin(directory, 3)
        with pytest.raises(OSError, match="File exists"):
            directory.begin_attempt(replace(COHORT, attempt=3))


def test_an_upload_that_deletes_its_file_meanwhile_disturbs_no_commit(tmp_path, monkeypatch):
    listed = Path.iterdir

    def list_and_lose(folder):
        found = list(listed(folder))
        (folder / "cut.safetensors").unlink(missing_ok=True)
        return iter(found)

    with opened(tmp_path) as directory:
        begin(directory, 1)
        monkeypatch.setattr(Path, "iterdir", list_and_lose)
        directory.abandon_attempt(1)
    assert not directory.round_folder(1).exists()


def test_update_files_that_were_set_aside_are_removed_when_asked_and_by_recovery(tmp_path):
    for remove in ("remove_spare", "recover"):
        with opened(tmp_path / remove) as directory:
            commit(directory, 1)
            assert names(tmp_path / remove / "rounds") == ["00001", "spare"]
            getattr(directory, remove)()
            assert names(tmp_path / remove / "rounds") == ["00001"]


@pytest.mark.parametrize("name", ["spare", "abandoned"])
@pytest.mark.parametrize("kind", ["link", "broken link", "file"])
def test_what_is_in_the_way_of_old_updates_is_litter_and_a_link_is_not_followed(
    tmp_path, name, kind
):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    (elsewhere / "mine.safetensors").write_bytes(b"mine")
    litter = run / "rounds" / name
    with opened(run) as directory:
        if kind == "file":
            litter.touch()
        else:
            litter.symlink_to(elsewhere if kind == "link" else tmp_path / "nowhere")
        assert directory.spares() == []
        commit(directory, 1)
        begin(directory, 2)
        directory.abandon_attempt(2)
        assert names(run / "rounds") == ["00001", "spare"]
        assert not (run / "rounds" / "spare").is_symlink()
    assert names(elsewhere) == ["mine.safetensors"]
    assert (elsewhere / "mine.safetensors").read_bytes() == b"mine"


def test_recovery_removes_updates_that_a_crash_after_the_commit_left(tmp_path):
    with opened(tmp_path) as directory:
        record = commit(directory, 1)
        directory.updates_folder(1).mkdir()
        assert directory.recover().record == record
        assert not directory.updates_folder(1).exists()


def test_only_the_last_committed_rounds_are_kept(tmp_path):
    with opened(tmp_path) as directory:
        for number in range(1, 6):
            commit(directory, number, keep=2)
        directory.remove_spare()
        assert names(tmp_path / "rounds") == ["00004", "00005"]
        assert directory.recover().record.round == 5


def test_the_best_and_the_last_model_are_always_kept(tmp_path):
    with opened(tmp_path) as directory:
        for number in range(1, 5):
            progress = Progress(best_round=min(number, 2), best_score=1.0)
            commit(directory, number, keep=1, progress=progress)
    models = tmp_path / "models"
    assert (models / "best.safetensors").read_bytes() == b"model 2"
    assert (models / "global.safetensors").read_bytes() == b"model 4"
    assert json.loads((models / "best.json").read_text())["round"] == 2
    assert json.loads((models / "global.json").read_text())["round"] == 4


def test_a_model_without_evaluation_has_null_metrics_beside_it(tmp_path):
    with opened(tmp_path) as directory:
        commit(directory, 1)
    metadata = json.loads((tmp_path / "models" / "global.json").read_text())
    digest = digest_bytes(b"model 1")
    assert (metadata["blake3"], metadata["size_bytes"]) == digest
    assert metadata["accuracy"] is metadata["client_loss"] is None


def test_recovery_publishes_what_a_crash_left_unpublished(tmp_path):
    with opened(tmp_path) as directory:
        full_commit(directory, 1)
        published = sorted((tmp_path / "models").iterdir())
        for path in published:
            path.unlink()
        directory.recover()
        assert sorted((tmp_path / "models").iterdir()) == published


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def write_a_list(path):
    path.write_text("[]")


def delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, delete])
@pytest.mark.parametrize("name", ["model.safetensors", "momentum.safetensors"])
def test_damaged_tensors_are_an_error_that_names_the_file_and_the_remedy(tmp_path, name, damage):
    with opened(tmp_path) as directory:
        full_commit(directory, 1)
        path = directory.round_folder(1) / name
        damage(path)
        with pytest.raises(CheckpointError) as caught:
            directory.recover()
    assert str(path) in str(caught.value)
    assert "put back a copy of it, or begin a new run" in str(caught.value)


@pytest.mark.parametrize(
    "damage", [cut_short, write_a_list, lambda path: path.write_bytes(b"\xff")]
)
@pytest.mark.parametrize("name", ["record.json", "cohort.json"])
def test_damaged_json_is_an_error_that_names_the_file_and_the_remedy(tmp_path, name, damage):
    with opened(tmp_path) as directory:
        full_commit(directory, 2)
        directory.begin_attempt(COHORT)
        path = directory.round_folder(2 if name == "record.json" else 3) / name
        path.write_text(path.read_text().rstrip())
        damage(path)
        with pytest.raises(CheckpointError) as caught:
            directory.recover()
    assert f"{path} is damaged" in str(caught.value)
    assert "put back a copy of it, or " in str(caught.value)
    assert (f"move {path.parent} out of" in str(caught.value)) == (name == "cohort.json")


def without(path, name):
    value = read_sealed(path)
    del value[name]
    path.write_text(json.dumps(seal(value)))


@pytest.mark.parametrize("name", ["record.json", "cohort.json"])
def test_a_digit_that_flipped_is_found(tmp_path, name):
    with opened(tmp_path) as directory:
        full_commit(directory, 2)
        directory.begin_attempt(COHORT)
        path = directory.round_folder(2 if name == "record.json" else 3) / name
        field = "round" if name == "record.json" else "goal"
        value = json.loads(path.read_text())
        value[field] += 1
        path.write_text(json.dumps(value))
        with pytest.raises(CheckpointError, match="is damaged: its content is not what was"):
            directory.recover()


NEEDED = {"round", "model"}


@pytest.mark.parametrize("name", [f.name for f in fields(Record) if f.name not in NEEDED])
def test_a_record_of_before_a_field_was_added_is_read_without_it(tmp_path, name):
    with opened(tmp_path) as directory:
        record = full_commit(directory, 1)
        without(directory.round_folder(1) / "record.json", name)
        empty = Record(round=1, model=record.model)
        assert directory.recover().record == replace(record, **{name: getattr(empty, name)})


def test_a_record_of_before_a_column_was_added_is_read_and_what_is_unknown_left_out(tmp_path):
    with opened(tmp_path) as directory:
        record = full_commit(directory, 1)
        path = directory.round_folder(1) / "record.json"
        value = read_sealed(path)
        del value["row"]["train_loss"], value["progress"]["stale"]
        value["row"]["new"] = value["progress"]["new"] = value["new"] = 1
        path.write_text(json.dumps(seal(value)))
        assert directory.recover().record == replace(
            record,
            row=replace(record.row, train_loss=None),
            progress=replace(record.progress, stale=0),
        )


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_record_without_what_every_record_has_is_refused(tmp_path, name):
    with opened(tmp_path) as directory:
        full_commit(directory, 1)
        without(directory.round_folder(1) / "record.json", name)
        with pytest.raises(CheckpointError, match=r"record\.json (lacks|is of another round)"):
            directory.recover()


@pytest.mark.parametrize("name", [f.name for f in fields(Cohort) if f.name != "live"])
def test_a_cohort_without_what_every_cohort_has_is_refused(tmp_path, name):
    with opened(tmp_path) as directory:
        commit(directory, 2)
        directory.begin_attempt(COHORT)
        without(directory.round_folder(3) / "cohort.json", name)
        with pytest.raises(CheckpointError, match=r"cohort\.json lacks what a cohort has"):
            directory.recover()


def test_nobody_is_told_to_give_up_the_only_round(tmp_path):
    """The way back to an earlier round is named while there is one, and gives up nothing."""
    with opened(tmp_path) as directory:
        commit(directory, 1)
        commit(directory, 2)
        flip_a_byte(directory.model_path(2))
        with pytest.raises(CheckpointError) as caught:
            directory.recover()
        moved = f"move {directory.round_folder(2)} out of the run directory"
        assert f"{moved}: the run then goes on after round 1" in str(caught.value)
        directory.round_folder(2).rename(tmp_path / "moved")
        assert directory.recover().record.round == 1
        flip_a_byte(directory.model_path(1))
        with pytest.raises(CheckpointError, match="put back a copy of it, or begin a new run"):
            directory.recover()


def test_a_run_that_has_lost_all_its_rounds_is_not_begun_again_over_what_is_left(tmp_path):
    with opened(tmp_path) as directory:
        commit(directory, 1)
        for gone in (directory.path / "rounds").iterdir():
            shutil.rmtree(gone)
        with pytest.raises(CheckpointError, match="rounds has lost all committed rounds; put back"):
            directory.recover()
        assert (tmp_path / "models" / "global.safetensors").read_bytes() == b"model 1"


@pytest.mark.parametrize("number", [0, 1])
def test_rounds_without_their_configuration_are_still_a_run(tmp_path, number):
    with opened(tmp_path) as directory:
        assert not directory.holds_run()
        commit(directory, number)
        assert directory.holds_run()
        with pytest.raises(CheckpointError, match=r"config\.json is missing; put back a copy"):
            directory.load_config()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("x")])
@pytest.mark.parametrize("name", ["best.safetensors", "best.json"])
def test_a_best_model_that_is_damaged_or_gone_is_said(tmp_path, capsys, name, damage):
    with opened(tmp_path) as directory:
        progress = Progress(best_round=1, best_score=0.5, stale=1)
        commit(directory, 1, progress=progress)
        commit(directory, 2, progress=progress)
        path = tmp_path / "models" / name
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)  # No other name of the round's own file.
        directory.recover()
        # To either stream, as the tests before have left the log.
        assert "best model" not in "".join(capsys.readouterr())
        damage(path)
        directory.recover()
        assert "best model so far is damaged or gone" in "".join(capsys.readouterr())


def test_the_remedy_for_a_damaged_round_helps(tmp_path):
    with opened(tmp_path) as directory:
        record = commit(directory, 1)
        commit(directory, 2)
        shutil.rmtree(directory.round_folder(2))
        assert directory.recover() == Recovered(record=record)
        assert (tmp_path / "models" / "global.safetensors").read_bytes() == b"model 1"


def test_a_second_server_in_the_same_directory_is_refused(tmp_path):
    with (
        opened(tmp_path),
        pytest.raises(InputError, match="--run-dir: another server is using"),
        opened(tmp_path),
    ):
        pass
    with opened(tmp_path):
        pass


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"--run-dir: can't write .*file/run"),
        opened(tmp_path / "file" / "run"),
    ):
        pass


def test_the_configuration_comes_back(tmp_path):
    config = {"run_id": "mine", "options": {"lr": 0.1}, "versions": {}}
    with opened(tmp_path) as directory:
        directory.save_config(config)
        assert directory.holds_run()
        assert directory.load_config() == config


@pytest.mark.parametrize("text", [None, "", "{}", '{"run_id": "x"}', "[]", "\xff"])
def test_a_missing_or_damaged_configuration_is_an_error_that_names_the_file(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is (missing|damaged)"):
        RunDirectory(tmp_path).load_config()


def test_an_order_to_stop_holds_until_the_run_is_given_more_rounds(tmp_path):
    with opened(tmp_path) as directory:
        assert not directory.is_to_stop(20)
        directory.order_stop(20)
        assert [directory.is_to_stop(rounds) for rounds in (20, 21)] == [True, False]
        directory.order_stop(30)
        assert directory.is_to_stop(30)
        (tmp_path / "stop.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"stop\.json is damaged.*move it elsewhere"):
            directory.is_to_stop(30)


def test_what_nobody_has_trained_is_no_best_model(tmp_path):
    with opened(tmp_path) as directory:
        directory.begin_initial(b"initial")
        directory.commit(Record(round=0, model=digest_bytes(b"initial")))
        directory.recover()
        assert names(tmp_path / "models") == ["global.json", "global.safetensors"]
        commit(directory, 1)
        assert "best.safetensors" in names(tmp_path / "models")


def test_a_run_directory_of_a_newer_format_is_one_plain_error(tmp_path):
    config = {"run_id": "mine", "options": {"lr": 0.1}, "versions": {}}
    with opened(tmp_path) as directory:
        directory.save_config(config | {"format": FORMAT})
        assert directory.load_config()["format"] == FORMAT
        RunFiles(tmp_path)
        directory.save_config(config | {"format": FORMAT + 1})
        for read in (directory.load_config, lambda: RunFiles(tmp_path)):
            with pytest.raises(CheckpointError, match=rf"has format {FORMAT + 1}, .* newer one$"):
                read()


def test_the_newest_run_is_the_one_begun_last(tmp_path):
    for seconds, name in [(100, "b"), (300, "a"), (200, "c")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name / "config.json", (seconds, seconds))
    (tmp_path / "no-run").mkdir()
    (tmp_path / "no-run" / "notes.txt").touch()
    assert newest_run(tmp_path) == tmp_path / "a"


def test_a_run_whose_server_was_killed_before_it_saved_anything_is_the_newest(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    os.utime(tmp_path / "a" / "config.json", (100, 100))
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").touch()
    killed = tmp_path / "b"
    killed.mkdir()
    assert newest_run(tmp_path) == killed
    with opened(killed) as directory:
        assert directory.is_unbegun()
        assert newest_run(tmp_path) == killed
        directory.begin_initial(b"initial")
        directory.commit(Record(round=0, model=digest_bytes(b"initial")))
        assert not directory.is_unbegun()
    assert not RunDirectory(tmp_path / "mlflow").is_unbegun()
    assert not RunDirectory(tmp_path / "missing").is_unbegun()


def test_without_a_run_there_is_no_newest(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"--resume: there is no run in .* --run-dir"):
            newest_run(folder)


def test_exported_models_load_without_folkmoot_or_pickled_code(tmp_path):
    tensors = {"weight": torch.arange(6.0).reshape(2, 3)}
    (tmp_path / "global.safetensors").write_bytes(encode(tensors))
    (path,) = export_pth(tmp_path)
    assert path == tmp_path / "global.pth"
    assert torch.equal(torch.load(path, weights_only=True)["weight"], tensors["weight"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["global.pth", "global.safetensors"]
