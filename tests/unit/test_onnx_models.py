"""Models as ONNX: what they take, and that they give what the model gives."""

import onnx
import pytest
import torch
from torch import nn

from common.errors import InputError
from common.onnx_models import export_onnx, open_session
from common.tasks.digits import cnn
from common.tasks.shakespeare import CharacterLstm


class OfOneLength(nn.Module):
    """Tracing makes a constant of its loop."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 9)

    def forward(self, tokens):
        found = [self.embedding(tokens[:, : place + 1]).sum(1) for place in range(tokens.shape[1])]
        return torch.stack(found, 2)


class OfOneBatch(nn.Module):
    """Tracing makes a constant of its factor."""

    def forward(self, inputs):
        return inputs.flatten(1) * len(inputs)


class OfTwoOutputs(nn.Module):
    """No classifier."""

    def forward(self, inputs):
        return inputs, inputs


def shapes(path):
    graph = onnx.load(path).graph
    return [
        [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]


def same_outputs(path, model, inputs):
    (found,) = open_session(path).run(None, {"input": inputs.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(found), model(inputs), rtol=1e-4, atol=1e-4)


def test_any_number_of_pictures_gives_the_models_scores(tmp_path):
    path, model = tmp_path / "digits.onnx", cnn()
    export_onnx(model, torch.rand(1, 1, 8, 8), path)
    assert shapes(path) == [["batch", 1, 8, 8], ["batch", 10]]
    for count in (1, 2, 17):
        same_outputs(path, model, torch.rand(count, 1, 8, 8))


def test_a_text_may_be_of_any_length_under_an_lstm(tmp_path):
    path, model = tmp_path / "text.onnx", CharacterLstm()
    export_onnx(model, torch.randint(70, (2, 12)), path)
    assert shapes(path) == [["batch", "length"], ["batch", 73, "length"]]
    for shape in ((1, 1), (3, 5), (2, 80)):
        same_outputs(path, model, torch.randint(70, shape))


def test_a_graph_that_is_right_for_one_length_only_takes_that_one(tmp_path):
    path, model = tmp_path / "text.onnx", OfOneLength()
    export_onnx(model, torch.randint(9, (2, 6)), path)
    assert shapes(path) == [["batch", 6], ["batch", 9, 6]]
    same_outputs(path, model, torch.randint(9, (5, 6)))


def test_the_same_weights_give_the_same_bytes_without_paths_of_this_machine(tmp_path):
    model, example = cnn(), torch.rand(3, 1, 8, 8)
    for name in ("a", "b"):
        export_onnx(model, example, tmp_path / name)
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes()
    assert b".py" not in first


@pytest.mark.parametrize(
    ("model", "reason"),
    [(OfOneBatch(), "its outputs are others"), (OfTwoOutputs(), "not one tensor")],
)
def test_what_a_graph_can_not_be_is_refused_in_a_line_and_leaves_no_file(tmp_path, model, reason):
    path = tmp_path / "model.onnx"
    with pytest.raises(InputError, match=f"can't be written as ONNX: .*{reason}") as caught:
        export_onnx(model, torch.rand(2, 3), path)
    assert "\n" not in str(caught.value)
    assert not path.exists()
