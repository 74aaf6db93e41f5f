"""The scripts that use a run's model, on a small run directory."""

import io
import json

import pytest
import torch

from common.durable import seal
from common.errors import InputError
from common.tasks import load_task
from common.tensors import encode
from scripts import perplexity, predict
from scripts.commands import run_app
from scripts.trained import load_trained

# The scripts read sys.argv, which the fixture sets.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked")


def write_run(folder, task="next_word", names=("best", "global")):
    """Write what a run leaves behind, with untrained models."""
    torch.manual_seed(0)
    (folder / "models").mkdir(parents=True)
    config = {
        "run_id": "mine",
        "options": {"task": task, "model": next(iter(load_task(task).models))},
    }
    (folder / "config.json").write_text(json.dumps(seal(config)))
    tensors = encode(next(iter(load_task(task).models.values()))().state_dict())
    for name in names:
        (folder / "models" / f"{name}.safetensors").write_bytes(tensors)
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments, script=predict):
        monkeypatch.setattr("sys.argv", [script.__name__, *map(str, arguments)])
        status = run_app(script.app)
        return (status, *capsys.readouterr())

    return run


def test_the_likeliest_words_are_printed_with_their_probabilities(tmp_path, command):
    run = write_run(tmp_path / "run")
    status, out, err = command("--run-dir", run, "the value of the")
    assert (status, err, len(out.splitlines())) == (0, "", 3)
    status, out, _ = command("--run-dir", run, "--top", 5, "--json", "the value of the")
    found = json.loads(out)
    assert (status, found["prompt"], len(found["suggestions"])) == (0, "the value of the", 5)
    probabilities = [suggestion["probability"] for suggestion in found["suggestions"]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_without_a_prompt_each_line_is_one(tmp_path, command, monkeypatch):
    run = write_run(tmp_path / "run", task="shakespeare", names=["global"])
    monkeypatch.setattr("sys.stdin", io.StringIO("To be\n\nor not\n"))
    status, out, err = command("--run-dir", run, "--json")
    assert status == 0
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["To be", "or not"]
    assert err == "error: PROMPT: there is nothing to go on in ''\n"


@pytest.mark.parametrize(
    ("task", "names", "prompt", "said"),
    [
        (None, (), "a", "there is no run in"),
        ("digits", ["best"], "a", "is a model of digits, which is not text"),
        ("next_word", (), "a", "has no model yet"),
        ("next_word", ["best"], "12", "PROMPT: there is nothing to go on in '12'"),
    ],
)
def test_wrong_input_is_an_error_that_says_what(tmp_path, command, task, names, prompt, said):
    if task:
        write_run(tmp_path / "run", task, names)
    status, out, err = command("--run-dir", tmp_path / "run", prompt)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_model_that_is_damaged_or_of_other_code_is_an_error(tmp_path, command):
    run = write_run(tmp_path / "run")
    for content in (b"damaged", encode({"weight": torch.zeros(2)})):
        (run / "models" / "best.safetensors").write_bytes(content)
        status, _, err = command("--run-dir", run, "a")
        assert status == 2
        assert "best.safetensors is no model of next_word as it is here" in err
        assert len(err.splitlines()) == 1


def test_perplexities_stand_beside_each_other(tmp_path, command):
    run = write_run(tmp_path / "run")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "ada.txt").write_text("the cat and the dog. " * 200)
    arguments = ("--run-dir", run, "--data-dir", tmp_path)
    status, out, _ = command(*arguments, "--json", script=perplexity)
    found = json.loads(out)
    assert (status, list(found)) == (0, ["model", "unigram", "bigram"])
    assert found["bigram"] < found["unigram"] < found["model"]
    assert len(command(*arguments, script=perplexity)[1].splitlines()) == 3


def test_a_run_of_any_task_is_loaded_its_best_model_first(tmp_path):
    run = write_run(tmp_path / "run", task="digits")
    found = load_trained(run)
    assert (found.path, found.options["task"]) == (run / "models" / "best.safetensors", "digits")
    assert load_trained(run, "global").path == run / "models" / "global.safetensors"
    (run / "models" / "best.safetensors").unlink()
    assert load_trained(run).path == run / "models" / "global.safetensors"
    with pytest.raises(InputError, match="has no model called best"):
        load_trained(run, "best")


def test_a_model_that_left_layers_at_its_clients_says_so(tmp_path):
    run = write_run(tmp_path / "run", task="digits")
    config = json.loads((run / "config.json").read_text())
    config["options"]["local_layers"] = "^0"
    (run / "config.json").write_text(
        json.dumps(seal({k: config[k] for k in ("run_id", "options")}))
    )
    tensors = load_task("digits").models["cnn"]().state_dict()
    left = {name: value for name, value in tensors.items() if not name.startswith("0")}
    (run / "models" / "best.safetensors").write_bytes(encode(left))
    with pytest.raises(InputError, match=r"left the layers '\^0' at its clients"):
        load_trained(run)
