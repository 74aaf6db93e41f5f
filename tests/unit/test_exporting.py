"""`./scripts/export`: what it writes is the run's model, described as it is, and nothing is run."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.durable import seal
from common.errors import DataError
from common.onnx_models import open_session
from common.tasks import Examples, load_task
from common.tasks.inputs import load
from common.tensors import digest_bytes, encode, open_mapped
from scripts import perplexity, predict
from scripts.cli import run_app
from scripts.exporting.__main__ import app
from scripts.serving import metadata as beside
from scripts.serving.verify import main as verify
from scripts.trained_run import read_test_set
from tests.tasks import Unread

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked")
CHEAP = ("safetensors", "pth", "onnx", "onnx-int8")


def write_run(folder, task="digits", weights=None, **options):
    """Write what a run leaves behind after its seventh round."""
    torch.manual_seed(0)
    name, build = next(iter(load_task(task).models.items()))
    payload = encode(build().state_dict() if weights is None else weights)
    (folder / "models").mkdir(parents=True)
    config = {"run_id": "mine", "options": {"task": task, "model": name, **options}}
    (folder / "config.json").write_text(json.dumps(seal(config)))
    digest = digest_bytes(payload)
    said = {"round": 7, "blake3": digest.blake3, "size_bytes": digest.size_bytes}
    for which in ("best", "global"):
        (folder / "models" / f"{which}.safetensors").write_bytes(payload)
        (folder / "models" / f"{which}.json").write_text(json.dumps(said))
    return folder


def model_of(run):
    options = json.loads((run / "config.json").read_text())["options"]
    model = load_task(options["task"]).models[options["model"]]()
    model.load_state_dict(open_mapped(run / "models" / "best.safetensors"))
    return model.eval()


def scores(path, kind, model, inputs):
    """Return the scores of a file, as its users would get them."""
    if kind.startswith("onnx"):
        return torch.from_numpy(open_session(path, 1).run(None, {"input": inputs.numpy()})[0])
    weights = open_mapped(path) if kind == "safetensors" else torch.load(path, weights_only=True)
    model.load_state_dict(weights)
    with torch.inference_mode():
        return model(inputs)


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments, script=app):
        monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
        status = run_app(script)
        return (status, *capsys.readouterr())

    return run


@pytest.mark.parametrize("kind", CHEAP)
def test_a_file_gives_the_scores_of_the_runs_model_and_is_what_its_metadata_say(
    tmp_path, command, monkeypatch, kind
):
    run = write_run(tmp_path / "run")
    status, out, err = command(run, "--format", kind)
    assert (status, err) == (0, "")
    (path,) = (p for p in (run / "exports").iterdir() if p.suffix != ".json")
    assert {f"Model:    {path}", f"Metadata: {path}.json"} <= set(out.splitlines())
    task, model = load_task("digits"), model_of(run)
    examples = task.data(Path("data"), train=False)
    for count in (1, 5):
        inputs = examples.inputs[:count]
        with torch.inference_mode():
            wanted = model(inputs)
        tolerance = 0.1 if kind == "onnx-int8" else 1e-4
        found = scores(path, kind, task.models["cnn"](), inputs)
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    monkeypatch.setattr("sys.argv", ["verify", str(path)])
    assert verify() == 0
    said = beside.read(path)
    assert (said.file, said.format, said.run_id, said.round) == (path.name, kind, "mine", 7)
    assert (said.size_bytes, said.sha256) == (path.stat().st_size, beside.sha256_of(path))
    assert (said.task, said.model, said.classes) == ("digits", "cnn", list("0123456789"))
    assert said.input == beside.Value(name="input", dtype="float32", shape=["batch", 1, 8, 8])
    assert said.output == beside.Value(name="output", dtype="float32", shape=["batch", 10])
    assert replace(load(said.inputs), mean=(0.0,), std=(1.0,)) == task.inputs
    assert said.evaluation["examples"] == 360
    if kind != "onnx-int8":
        wanted = task.evaluate(model, examples).metrics
        assert {name: said.evaluation[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)


def test_a_flag_that_is_not_given_is_not_said_to_lack_its_value(tmp_path, command):
    assert command(tmp_path)[2] == "error: --format is missing; see --help\n"
    assert "--format requires an argument" in command(tmp_path, "--format")[2]


def test_a_text_model_without_held_out_data_is_exported_unevaluated_and_that_is_said(
    tmp_path, command
):
    run, path = write_run(tmp_path / "run", "shakespeare"), tmp_path / "text.onnx"
    status, out, _ = command(
        run, "--format", "onnx", "--output", path, "--data-dir", tmp_path, "--which", "global"
    )
    assert status == 0
    assert f"Held out: not evaluated: no data in {tmp_path} that can be read" in out
    said = beside.read(path)
    assert (said.evaluation, said.length) == (None, 80)
    assert (said.input.shape, said.input.dtype) == (["batch", "length"], "int64")
    assert said.output.shape == ["batch", 73, "length"]
    status, _, err = command(run, "--format", "onnx-int8", "--data-dir", tmp_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "name the folder with --data-dir, or add --force" in err


def test_eight_bits_that_cost_too_much_are_refused_unless_forced(tmp_path, command):
    # Tells the classes by ones that are lost beside a thousand in eight bits.
    weight = torch.cat([torch.eye(3), torch.full((3, 1), 1000.0)], 1)
    name = "tests.tasks:Tiny"
    run = write_run(tmp_path / "run", name, {"weight": weight, "bias": torch.zeros(3)})
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was there")
    arguments = (run, "--format", "onnx-int8", "--task", name, "--output", path)
    status, out, err = command(*arguments)
    assert status == 2
    assert "of the accuracy, --max-loss is 0.01" in err
    assert "accuracy 1.0000" in out
    assert {p.name for p in tmp_path.iterdir()} == {"run", "model.onnx"}
    assert path.read_bytes() == b"what was there"
    assert command(*arguments, "--force")[0] == 0
    assert beside.read(path).evaluation["accuracy"] < 0.9
    assert command(*arguments, "--max-loss", 1)[0] == 0


def test_a_damaged_model_is_refused_by_name(tmp_path, command):
    run = write_run(tmp_path / "run")
    model = run / "models" / "best.safetensors"
    payload = bytearray(model.read_bytes())
    payload[-1] ^= 1
    model.write_bytes(payload)
    status, _, err = command(run, "--format", "onnx")
    assert status == 2
    assert f"{model} is not the model that best.json beside it describes" in err
    assert not (run / "exports").exists()


def test_half_a_model_is_refused_with_the_reason(tmp_path, command):
    name = "tests.tasks:Normalised"
    weights = {
        name: tensor
        for name, tensor in load_task(name).models["mlp"]().state_dict().items()
        if "norm" not in name
    }
    run = write_run(tmp_path / "run", name, weights, local_layers="norm")
    status, _, err = command(run, "--format", "onnx", "--task", name)
    assert (status, err.count("\n")) == (2, 1)
    assert "left the layers 'norm' at its clients" in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests.tasks:TwoHeaded", "the model returns tuple, not one tensor"),
        ("tests.kinds:TwoInputs", "an input of the task is not one tensor"),
        ("tests.kinds:Misfit", "the model's outputs are of shape [n, 2], not 1 numbers"),
    ],
)
def test_what_is_not_one_tensor_leaves_torch_as_weights_only(tmp_path, command, name, said):
    run = write_run(tmp_path / "run", name)
    for kind in ("onnx", "onnx-int8", "torch-export"):
        status, _, err = command(run, "--format", kind, "--task", name)
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith(f"error: --format {kind}: {said}")
        assert err.endswith("; --format safetensors and pth need no such thing\n")
    for kind in ("safetensors", "pth"):
        path = tmp_path / f"weights.{kind}"
        status, out, err = command(run, "--format", kind, "--task", name, "--output", path)
        assert (status, err) == (0, "")
        assert f"Outputs:  not described: {said}" in out
        written = beside.read(path)
        assert (written.input, written.output, written.outputs) == (None, None, None)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("Column", {"kind": "values", "names": ["price"], "units": ["EUR"]}),
        ("Flat", {"kind": "values", "names": ["price"], "units": ["EUR"]}),
        ("OwnLoss", {"kind": "values", "names": [], "units": []}),
        ("Tags", {"kind": "labels", "names": ["a", "b", "c"], "threshold": 0.5}),
        ("Pixels", {"kind": "map", "names": ["dark", "light"]}),
        ("Lazy", {"kind": "classes", "names": []}),
    ],
)
def test_each_kind_of_outputs_leaves_torch_as_what_it_is(
    tmp_path, command, monkeypatch, kind, wanted
):
    name = f"tests.kinds:{kind}"
    run = write_run(tmp_path / "run", name)
    for format_ in CHEAP:
        path = tmp_path / f"model.{format_}"
        arguments = ("--format", format_, "--task", name, "--output", path, "--force")
        status, _, err = command(run, *arguments)
        assert (status, err) == (0, "")
        written = beside.read(path)
        assert written.outputs == wanted
        assert written.evaluation.keys() >= {"examples", "loss"}
        monkeypatch.setattr("sys.argv", ["verify", str(path)])
        assert verify() == 0
    path = tmp_path / "model.onnx"
    examples = load_task(name).data(None, train=False)
    with torch.inference_mode():
        found = model_of(run)(examples.inputs[:5])
    torch.testing.assert_close(scores(path, "onnx", None, examples.inputs[:5]), found)


def test_eight_bits_without_an_accuracy_are_written_only_if_forced(tmp_path, command):
    run = write_run(tmp_path / "run", "tests.kinds:Column")
    status, _, err = command(run, "--format", "onnx-int8", "--task", "tests.kinds:Column")
    assert (status, err.count("\n")) == (2, 1)
    assert "its evaluation has no accuracy" in err


def test_a_file_that_can_not_be_written_is_said_with_the_flag(tmp_path, command):
    run = write_run(tmp_path / "run")
    (tmp_path / "file").touch()
    status, _, err = command(run, "--format", "onnx", "--output", tmp_path / "file" / "a.onnx")
    assert status == 2
    assert err.startswith("error: --output: can't write")


def test_without_the_extra_the_error_says_what_to_install(tmp_path, command, monkeypatch):
    run = write_run(tmp_path / "run")
    monkeypatch.setattr("common.extras.find_spec", lambda name: None)
    status, _, err = command(run, "--format", "onnx-int8")
    assert status == 2
    assert err == ('error: --format onnx-int8 needs the extra "onnx": ./scripts/install onnx\n')
    assert command(run, "--format", "safetensors")[0] == 0


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.touch, (self.sentinel,)


def test_nothing_in_a_poisoned_run_directory_is_run(tmp_path, command):
    sentinel = tmp_path / "was-run"
    bomb = pickle.dumps(Bomb(sentinel))
    run = write_run(tmp_path / "run")
    (run / "rounds" / "00007").mkdir(parents=True)
    (run / "exports").mkdir()
    places = ["models/best.pth", "models/global.pth", "state.pkl", "exports/digits-cnn-7.pth"]
    places += ["rounds/00007/model.safetensors", "rounds/00007/optimizer.safetensors"]
    for place in places:
        (run / place).write_bytes(bomb)
    for kind in CHEAP:
        assert command(run, "--format", kind)[0] == 0
    np.save(tmp_path / "one.npy", np.zeros((1, 8, 8), np.float32))
    assert command(run, tmp_path / "one.npy", script=predict.app)[0] == 0
    # As the model itself, and as what describes the run.
    for place in ("models/best.safetensors", "models/best.json", "config.json"):
        (run / place).write_bytes(bomb)
        status, _, err = command(run, "--format", "pth")
        assert (status, err.count("\n")) == (2, 1)
        status, _, err = command(run, "one.npy", script=predict.app)
        assert (status, err.count("\n")) == (2, 1)
    assert not sentinel.exists()
    # The bomb works.
    pickle.loads(bomb)  # noqa: S301
    assert sentinel.exists()


def test_an_export_is_for_its_owner_alone(tmp_path, command):
    run = write_run(tmp_path / "run")
    assert command(run, "--format", "pth")[0] == 0
    assert (run / "exports").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (app, ["stranger", "--format", "pth"]),
        (predict.app, ["stranger", "one.npy"]),
        (perplexity.app, ["--run-dir", "stranger"]),
    ],
)
def test_a_task_that_a_run_directory_brings_along_is_run_only_when_it_is_named(
    tmp_path, command, monkeypatch, script, arguments
):
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("stranger"))
    (run / "code.py").write_text("from pathlib import Path\nPath('was-run').touch()\n")
    config = {"run_id": "mine", "options": {"task": "stranger.code:Task", "model": "cnn"}}
    (run / "config.json").write_text(json.dumps(seal(config)))
    status, _, err = command(*arguments, script=script)
    assert (status, Path("was-run").exists()) == (2, False)
    assert "whose code would run here; if you trust it, add --task stranger.code:Task" in err


@pytest.mark.full
def test_a_torch_export_program_holds_no_example_no_pickle_and_no_path_of_this_machine(
    tmp_path, command
):
    run, path = write_run(tmp_path / "run"), tmp_path / "digits.pt2"
    assert command(run, "--format", "torch-export", "--output", path)[0] == 0
    assert beside.read(path).input.shape == ["batch", 1, 8, 8]
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert b".py" not in content
            assert "sample_inputs" not in name or not content
    program = torch.export.load(path)
    assert program.example_inputs is None
    examples = Examples(*load_task("digits").data(Path("data"), train=False))
    for count in (1, 5):
        inputs = examples.inputs[:count]
        with torch.inference_mode():
            torch.testing.assert_close(program.module()(inputs), model_of(run)(inputs))


def test_data_that_can_not_be_read_are_one_line_and_never_downloaded(tmp_path):
    with pytest.raises(
        DataError, match=r"^--task: the data of tests\.tasks:Unread can't be read: "
    ):
        read_test_set(Unread(), tmp_path / "gone")
    with pytest.raises(DataError, match=f"^--data-dir: the task's data is not in {tmp_path}$"):
        read_test_set(load_task("mnist"), tmp_path)
