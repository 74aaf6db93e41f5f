"""The server's options: their names, where they come from, and what a resumed run may change."""

import json
import re
from pathlib import Path

import pytest

from common.durable import read_sealed, seal
from common.errors import InputError, UnnamedTask
from common.tasks import load_task
from common.training import TrainConfig
from server.configuration import describe, parse, resolve, resolve_split, train_config
from server.options import ServerOptions, SplitOptions, TrainingOptions

FLAGS = """
--rounds --task --model --local-layers --data-dir --seed --run-dir --resume --config
--num-partitions --partitioner --alpha --shards-per-client --partition-seed --validation-fraction
--min-clients --fraction --min-cohort --over-select --report-goal --quorum --report-deadline
--max-attempts --lease
--local-epochs --batch-size --lr --momentum --weight-decay --proximal-mu --hyperparameters
--strategy --server-lr --server-momentum --server-tau --server-beta2 --trim-fraction
--num-hostile --norm-bound --strategy-options
--evaluate-every --client-evaluate-every --evaluation-clients --fine-tune-epochs
--target-accuracy --patience --keep-rounds
--max-examples --max-update-norm --max-norm-ratio --max-share --max-clients
--tls-cert --tls-key --tls-client-ca --tls-crl --insecure
--bind --admin-bind --metrics-port --otlp-endpoint --threads
--mlflow-uri --mlflow-experiment --mlflow-model
--help --version
"""
# Of a run that may be resumed under other values.
CHANGEABLE = """
--rounds --data-dir --report-deadline --max-attempts --lease --target-accuracy --patience
--keep-rounds --max-examples --max-update-norm --max-norm-ratio --max-clients
--tls-cert --tls-key --tls-client-ca --tls-crl --insecure --bind --admin-bind
--metrics-port --otlp-endpoint --threads
--mlflow-uri --mlflow-experiment --mlflow-model
"""
# A value of each other flag that is not the saved run's.
OTHER = {
    "--task": "mnist",
    "--model": "other",
    "--local-layers": "norm",
    "--seed": "1",
    "--num-partitions": "6",
    "--partitioner": "iid",
    "--alpha": "0.25",
    "--shards-per-client": "3",
    "--partition-seed": "1",
    "--validation-fraction": "0.25",
    "--min-clients": "3",
    "--fraction": "0.25",
    "--min-cohort": "2",
    "--over-select": "2",
    "--report-goal": "2",
    "--quorum": "1",
    "--max-share": "0.25",
    "--local-epochs": "7",
    "--batch-size": "7",
    "--lr": "0.25",
    "--momentum": "0.25",
    "--weight-decay": "0.25",
    "--proximal-mu": "0.25",
    "--hyperparameters": '{"dropout": 0.25}',
    "--strategy": "fedavgm",
    "--server-lr": "0.25",
    "--server-momentum": "0.25",
    "--server-beta2": "0.25",
    "--server-tau": "0.25",
    "--trim-fraction": "0.25",
    "--num-hostile": "1",
    "--norm-bound": "0.25",
    "--strategy-options": '{"beta": 0.25}',
    "--evaluate-every": "7",
    "--client-evaluate-every": "7",
    "--evaluation-clients": "all",
    "--fine-tune-epochs": "7",
}


def save(options, folder):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(seal(describe(options, "mine"))))


def save_run(folder, *argv):
    """Write the config.json of a run that was started with these flags."""
    given = parse([*argv, "--threads", "2", "--run-dir", str(folder)])
    options = resolve(given, load_task("digits"))
    save(options, folder)
    return options


def resumed(folder, *argv):
    return parse(["--resume", "--run-dir", str(folder), *argv])


def test_the_list_of_flags_is_frozen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert parse(["--help"]) is None
    assert re.findall(r"^\W*(--[a-z0-9-]+)", capsys.readouterr().out, re.MULTILINE) == FLAGS.split()


def test_options_have_their_names_without_their_groups():
    names = ["--" + name.replace("_", "-") for name in ServerOptions().flat()]
    assert [*names, "--help", "--version"] == FLAGS.split()


@pytest.mark.parametrize(
    "argv",
    [
        ["--rounds", "0"],
        ["--seed", "-1"],
        ["--fraction", "0"],
        ["--fraction", "1.01"],
        ["--over-select", "0.9"],
        ["--validation-fraction", "1"],
        ["--alpha", "0"],
        ["--lr", "nan"],
        ["--lease", "0.5"],
        ["--momentum", "1"],
        ["--server-momentum", "-0.1"],
        ["--target-accuracy", "1.5"],
        ["--partitioner", "random"],
        ["--threads", "0"],
    ],
)
def test_a_value_out_of_bounds_is_refused_by_the_name_of_its_flag(argv):
    with pytest.raises(InputError, match=argv[0]):
        parse(argv)


def test_flags_go_before_environment_before_file(tmp_path, monkeypatch):
    file = tmp_path / "options.toml"
    file.write_text("lr = 0.3\nbatch-size = 3\nlocal-epochs = 3\n")
    monkeypatch.setenv("FOLKMOOT_LR", "0.2")
    monkeypatch.setenv("FOLKMOOT_BATCH_SIZE", "2")
    options = parse(["--config", str(file), "--lr", "0.1"])
    training = options.training
    assert (training.lr, training.batch_size, training.local_epochs) == (0.1, 2, 3)


def test_a_new_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = parse(["--task", "my.tasks:Mine"]).run.run_dir
    assert re.fullmatch(r"runs/\d{8}-\d{6}-my-tasks-Mine", str(first))
    first.mkdir(parents=True)
    assert parse(["--task", "my.tasks:Mine"]).run.run_dir != first
    assert parse(["--run-dir", "mine"]).run.run_dir == Path("mine")


def test_what_is_not_given_comes_from_the_task():
    options = resolve(parse(["--seed", "5", "--lr", "0.25"]), load_task("digits"))
    assert options.run.model == "cnn"
    assert (options.split.partition_seed, options.split.partitioner) == (5, "dirichlet")
    assert train_config(options.training) == TrainConfig(
        local_epochs=5, batch_size=16, learning_rate=0.25
    )


def test_the_partitioner_is_the_tasks_own_unless_it_is_given():
    task = load_task("mnist")
    task.partitioner = "natural"
    assert resolve(parse([]), task).split.partitioner == "natural"
    assert resolve(parse(["--partitioner", "iid"]), task).split.partitioner == "iid"


@pytest.mark.parametrize(
    ("name", "known", "partitioner"),
    [
        ("tests.tasks:Tiny", False, "dirichlet"),
        ("tests.tasks:Tiny", True, "dirichlet"),
        ("tests.tasks:Pairs", True, "iid"),
        ("tests.kinds:OwnLoss", True, "iid"),
        ("tests.kinds:Column", False, "iid"),
        ("tests.kinds:Tags", False, "iid"),
        ("tests.kinds:Pixels", False, "iid"),
        ("shakespeare", False, "natural"),
    ],
)
def test_what_has_no_classes_is_not_divided_by_class_unless_that_is_asked_for(
    name, known, partitioner
):
    task = load_task(name)
    targets = task.data(None, train=False).targets if known else None
    assert resolve_split(SplitOptions(), task, 0, targets).partitioner == partitioner
    asked = SplitOptions(partitioner="shards")
    assert resolve_split(asked, task, 0, targets).partitioner == "shards"


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_a_natural_split_of_a_task_without_owners_is_refused(name):
    with pytest.raises(InputError, match=r"--partitioner natural: task .* does not say whose"):
        resolve(parse(["--partitioner", "natural"]), load_task(name))


def test_a_zero_is_given_too():
    argv = ["--seed", "5", "--partition-seed", "0", "--momentum", "0"]
    options = resolve(parse(argv), load_task("digits"))
    assert (options.split.partition_seed, options.training.momentum) == (0, 0.0)


def test_hyperparameters_are_added_to_those_of_the_task():
    task = load_task("digits")
    task.defaults = TrainConfig(hyperparameters={"dropout": 0.5, "mode": "adam"})
    options = resolve(parse(["--hyperparameters", '{"dropout": 0.1}']), task)
    assert train_config(options.training).hyperparameters == {"dropout": 0.1, "mode": "adam"}


def test_training_options_reach_the_clients_configuration_under_their_names():
    options = TrainingOptions(
        local_epochs=2, batch_size=3, lr=0.4, momentum=0.5, weight_decay=0.6, proximal_mu=0.7
    )
    assert train_config(options) == TrainConfig(
        local_epochs=2,
        batch_size=3,
        learning_rate=0.4,
        momentum=0.5,
        weight_decay=0.6,
        proximal_mu=0.7,
    )


def test_an_unknown_model_is_refused_and_the_known_ones_are_named():
    with pytest.raises(InputError, match=r"--model: mnist has no model 'vit'; use one of cnn, mlp"):
        resolve(parse(["--task", "mnist", "--model", "vit"]), load_task("mnist"))


def test_a_quorum_above_the_goal_is_refused():
    with pytest.raises(InputError, match="--quorum: 3 updates are more than --report-goal 2"):
        resolve(parse(["--quorum", "3", "--report-goal", "2"]), load_task("digits"))


@pytest.mark.parametrize("never", ["--client-evaluate-every", "--validation-fraction"])
@pytest.mark.parametrize("asked", [("--fine-tune-epochs", "1"), ("--evaluation-clients", "all")])
def test_what_clients_do_when_they_evaluate_needs_their_evaluation(never, asked):
    message = f"^{asked[0]}: with {never} 0 no client evaluates"
    with pytest.raises(InputError, match=message):
        resolve(parse([*asked, never, "0"]), load_task("digits"))


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("norm", r"'norm' matches none of the model's tensors: 0\.weight, 0\.bias, 3\.weight"),
        ("weight|bias", "matches all of the model's tensors"),
        ("(", "is no regular expression"),
    ],
)
def test_local_layers_are_some_of_the_model_and_not_all(pattern, why):
    argv = ["--local-layers", pattern, "--evaluate-every", "0"]
    with pytest.raises(InputError, match=f"^--local-layers: .*{why}"):
        resolve(parse(argv), load_task("digits"))


def test_the_server_can_not_evaluate_what_it_has_not():
    argv = ["--local-layers", "^0"]
    with pytest.raises(InputError, match=r"^--local-layers: .* add --evaluate-every 0"):
        resolve(parse(argv), load_task("digits"))
    options = resolve(parse([*argv, "--evaluate-every", "0"]), load_task("digits"))
    assert options.run.local_layers == "^0"


def test_the_saved_configuration_is_json_with_the_versions(tmp_path):
    save_run(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["run_id"] == "mine"
    assert saved["options"].keys() == ServerOptions().flat().keys()
    assert saved["versions"].keys() == {"folkmoot", "torch", "python"}


def test_a_path_is_saved_so_that_it_is_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    save_run(Path("run"), "--data-dir", "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert resumed(Path("../run")).run.data_dir == tmp_path / "mine"


def test_a_folder_of_data_that_is_nowhere_is_saved_as_it_was_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    save_run(Path("run"))
    assert resumed(Path("run")).run.data_dir == Path("data")


def test_no_password_is_saved(tmp_path):
    save_run(tmp_path, "--mlflow-uri", "https://ann:secret@example.org/mlflow")
    text = (tmp_path / "config.json").read_text()
    assert "secret" not in text
    assert resumed(tmp_path).tracking.mlflow_uri == "https://example.org/mlflow"


def test_a_run_that_was_killed_before_it_saved_anything_begins_by_the_same_command(tmp_path):
    again = resumed(tmp_path, "--rounds", "7")
    assert (again.run.resume, again.run.run_dir, again.run.rounds) == (False, tmp_path, 7)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="--resume: there is no run in"):
        resumed(tmp_path)


def test_a_resumed_run_has_its_own_options(tmp_path):
    argv = ["--lr", "0.3", "--partitioner", "shards", "--seed", "5", "--min-clients", "4"]
    before = save_run(tmp_path, *argv, "--hyperparameters", '{"mode": "no", "layers": 2}')
    after = resumed(tmp_path)
    assert after.flat() == before.flat() | {"resume": True}
    assert train_config(after.training).hyperparameters == {"mode": "no", "layers": 2}


OWN = ("--strategy", "tests.strategies:Whole")


def test_a_resumed_runs_own_strategy_is_named_again_before_its_code_is_run(tmp_path):
    save_run(tmp_path, *OWN)
    with pytest.raises(InputError, match=r"add --strategy tests.strategies:Whole$"):
        resumed(tmp_path)
    assert resumed(tmp_path, *OWN).strategy.strategy_options == '{"pull": 0.1}'
    again = resumed(tmp_path, *OWN, "--strategy-options", '{"pull": 0.1}')
    assert resolve(again, load_task("digits")).strategy.strategy_options == '{"pull": 0.1}'
    with pytest.raises(InputError, match=r"^--strategy-options: the run in"):
        resumed(tmp_path, *OWN, "--strategy-options", '{"pull": 0.2}')


def test_a_run_that_was_begun_before_strategies_had_options_of_their_own_is_resumed(tmp_path):
    before = save_run(tmp_path, "--strategy", "fedadam")
    config = read_sealed(tmp_path / "config.json")
    del config["options"]["strategy_options"]
    (tmp_path / "config.json").write_text(json.dumps(seal(config)))
    after = resolve(resumed(tmp_path), load_task("digits"))
    assert after.strategy == before.strategy


@pytest.mark.parametrize(
    ("flags", "given", "message"),
    [
        (OWN, '{"pull": 1}', r"^--strategy-options: .*[Pp]ull.* < 1"),
        (OWN, '{"pull": "far"}', r"^--strategy-options: .*pull"),
        (OWN, '{"push": 0.1}', r"^--strategy-options: .*push"),
        (OWN, '{"pull": [1]}', r"^--strategy-options: .* is not a JSON object of finite"),
        (OWN, "pull", r"^--strategy-options: 'pull' is not JSON"),
        (OWN, '{"server_lr": 0.1}', r"^--strategy-options: server_lr .*use --server-lr$"),
        ((*OWN, "--norm-bound", "1"), "{}", r"^--norm-bound is not an option of --strategy tests"),
        ((), '{"beta": 1}', r"^--strategy-options: .*beta"),
        (("--strategy", "best"), "{}", r"^--strategy: no strategy 'best'; use one of fedavg, "),
        (
            ("--strategy", "tests.strategies:NOT_ONE"),
            "{}",
            "is no class derived from common.algorithms",
        ),
        (("--strategy", "no.module:X"), "{}", r"^--strategy: 'no.module:X': no module 'no'"),
    ],
)
def test_a_strategy_and_its_options_are_checked_before_the_run_begins(flags, given, message):
    with pytest.raises(InputError, match=message):
        resolve(parse([*flags, "--strategy-options", given]), load_task("digits"))


def test_a_resumed_run_may_be_told_the_same_again(tmp_path):
    argv = ["--lr", "0.3", "--hyperparameters", '{"mode":"adam", "dropout":1e-1}']
    before = save_run(tmp_path, *argv).flat()
    assert resumed(tmp_path, *argv).flat() == before | {"resume": True}


def test_a_resumed_run_may_change_what_changes_no_byte_of_it(tmp_path):
    before = save_run(tmp_path).flat()
    argv = [word for flag in CHANGEABLE.split() for word in (flag, "1")]
    argv[argv.index("--rounds") + 1] = "11"
    del argv[argv.index("--insecure") + 1]
    after = resumed(tmp_path, *argv).flat()
    changed = {name for name in before if before[name] != after[name]} - {"resume"}
    assert {"--" + name.replace("_", "-") for name in changed} == set(CHANGEABLE.split())


def test_a_resumed_run_can_be_made_longer_not_shorter(tmp_path):
    save_run(tmp_path, "--rounds", "5")
    assert resumed(tmp_path, "--rounds", "6").run.rounds == 6
    with pytest.raises(InputError, match=r"^--rounds: the run in .* has 5"):
        resumed(tmp_path, "--rounds", "4")


@pytest.mark.parametrize("flag", OTHER)
def test_a_flag_that_contradicts_the_resumed_run_is_refused_by_name(tmp_path, flag):
    save(resolve(ServerOptions(), load_task("digits")), tmp_path)
    with pytest.raises(InputError, match=f"^{flag}: the run in .* has "):
        resumed(tmp_path, flag, OTHER[flag])


def test_each_flag_is_changeable_or_not():
    neither = {"--run-dir", "--resume", "--config", "--help", "--version"}
    assert {*CHANGEABLE.split(), *OTHER, *neither} == set(FLAGS.split())


def test_a_hyperparameter_that_contradicts_the_resumed_run_is_refused_by_name(tmp_path):
    save_run(tmp_path, "--hyperparameters", '{"dropout": 0.1}')
    with pytest.raises(InputError, match=r"^--hyperparameters: the run in .* has "):
        resumed(tmp_path, "--hyperparameters", '{"dropout": 0.2}')


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "1", "dropout=0.1", '{"a": null}', '{"a": [1]}', '{"a": NaN}', '{"a": -Infinity}'],
)
def test_hyperparameters_are_a_json_object_of_numbers_strings_and_booleans(text):
    with pytest.raises(InputError, match=r"^--hyperparameters: .* is not (a )?JSON"):
        resolve(parse(["--hyperparameters", text]), load_task("digits"))


def test_a_variable_or_file_contradicts_a_resumed_run_as_a_flag_does(tmp_path, monkeypatch):
    save_run(tmp_path)
    file = tmp_path / "options.toml"
    file.write_text("lr = 0.7\n")
    with pytest.raises(InputError, match=r"^--lr: the run in"):
        resumed(tmp_path, "--config", str(file))
    monkeypatch.setenv("FOLKMOOT_SEED", "9")
    with pytest.raises(InputError, match=r"^--seed: the run in"):
        resumed(tmp_path)


def test_without_a_folder_the_newest_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    save_run(tmp_path / "runs" / "mine", "--seed", "3")
    options = parse(["--resume"])
    assert (options.run.run_dir, options.run.seed) == (Path("runs/mine"), 3)


def test_there_must_be_a_run_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--resume: there is no run in runs/"):
        parse(["--resume"])
    with pytest.raises(InputError, match=r"--resume: there is no run in .*; name its folder"):
        resumed(tmp_path / "missing")


def test_a_saved_option_that_is_unknown_is_an_error_that_names_it(tmp_path):
    save_run(tmp_path)
    path = tmp_path / "config.json"
    config = read_sealed(path)
    config["options"]["of_another_version"] = 1
    path.write_text(json.dumps(seal(config)))
    with pytest.raises(InputError, match=r"of.another.version"):
        resumed(tmp_path)


def test_a_resumed_run_is_insecure_only_if_that_is_said_again(tmp_path):
    given = parse(["--insecure", "--run-dir", str(tmp_path)])
    save(resolve(given, load_task("digits")), tmp_path)
    assert not resumed(tmp_path).security.insecure
    assert resumed(tmp_path, "--insecure").security.insecure


def test_a_resumed_runs_own_task_is_named_again_before_its_code_is_run(tmp_path):
    save_run(tmp_path, "--task", "tests.tasks:Tiny")
    with pytest.raises(UnnamedTask, match=r"add --task tests.tasks:Tiny"):
        resumed(tmp_path)
    with pytest.raises(InputError, match=r"^--task: the run in .* has tests.tasks:Tiny"):
        resumed(tmp_path, "--task", "tests.tasks:Owned")
    assert resumed(tmp_path, "--task", "tests.tasks:Tiny").run.task == "tests.tasks:Tiny"
