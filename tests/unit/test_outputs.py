"""What a task says of its outputs is what they are trained, measured and answered by."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from common.errors import DataError, InputError
from common.tasks import Classes, Examples, Labels, Map, Values, load_examples, load_task
from common.tasks.outputs import NextSymbol, describe, load
from common.training import TrainConfig


def task(name):
    return load_task(f"tests.kinds:{name}")


def evaluated(name):
    torch.manual_seed(0)
    found = task(name)
    model = next(iter(found.models.values()))()
    examples = found.data(None, train=False)
    return found, model, examples, found.evaluate(model, examples)


@pytest.mark.parametrize("name", ["Column", "Flat", "Several"])
def test_numbers_are_measured_by_their_errors_and_have_no_accuracy(name):
    _, model, (inputs, targets), (metrics, confusion) = evaluated(name)
    with torch.no_grad():
        found = model(inputs).reshape(targets.shape)
    assert confusion is None
    assert metrics == {
        "loss": pytest.approx(mse_loss(found, targets).item(), rel=1e-5),
        "mean_squared_error": pytest.approx(mse_loss(found, targets).item(), rel=1e-5),
        "mean_absolute_error": pytest.approx((found - targets).abs().mean().item(), rel=1e-5),
    }


@pytest.mark.parametrize("name", ["OwnLoss", "Own"])
def test_a_regression_that_replaces_only_its_loss_has_no_accuracy(name):
    *_, (metrics, confusion) = evaluated(name)
    assert metrics.keys() - {"within_one"} == {"loss"}
    assert confusion is None


def test_labels_are_measured_each_and_all_together():
    found, model, (inputs, targets), (metrics, confusion) = evaluated("Tags")
    with torch.no_grad():
        scores = model(inputs)
    right = (scores > 0) == (targets > 0)
    loss = binary_cross_entropy_with_logits(scores, targets.float())
    assert confusion is None
    assert metrics == {
        "loss": pytest.approx(loss.item(), rel=1e-5),
        "label_accuracy": pytest.approx(right.double().mean().item()),
        "exact_match": pytest.approx(right.all(1).double().mean().item()),
    }


def test_a_map_is_measured_by_the_share_of_its_places():
    _, model, (inputs, targets), (metrics, confusion) = evaluated("Pixels")
    with torch.no_grad():
        scores = model(inputs)
    assert confusion is None
    assert metrics == {
        "loss": pytest.approx(cross_entropy(scores, targets).item(), rel=1e-5),
        "accuracy": pytest.approx((scores.argmax(1) == targets).double().mean().item()),
    }


@pytest.mark.parametrize("name", ["TwoInputs", "Lazy"])
def test_inputs_that_are_no_tensor_are_evaluated_as_classes(name):
    *_, (metrics, confusion) = evaluated(name)
    assert metrics.keys() == {"loss", "accuracy"}
    assert sum(map(sum, confusion)) == 200


@pytest.mark.parametrize("name", ["Column", "Several", "Tags", "Pixels", "Lazy"])
def test_the_loss_of_what_a_task_says_is_learned(name):
    found, model, examples, before = evaluated(name)
    inputs = examples.inputs[: len(examples.inputs)]
    config = TrainConfig(local_epochs=20, batch_size=20, learning_rate=0.1)
    found.train(model, type(examples)(inputs, examples.targets), config, 0, lambda *_: None)
    assert found.evaluate(model, examples).metrics["loss"] < before.metrics["loss"] / 2


@pytest.mark.parametrize(
    ("outputs", "shape", "targets", "said"),
    [
        (Classes(), (2, 1), torch.zeros(2, dtype=torch.long), "[n, 1], not [n, classes] of at"),
        (Classes(), (2, 3, 4), torch.zeros(2, 4, dtype=torch.long), "[n, 3, 4], not [n, classes]"),
        (Classes(("a", "b")), (2, 3), torch.zeros(2, dtype=torch.long), "not 2 scores, one for"),
        (Classes(), (2, 3), torch.zeros(2), "dtype float32 and shape [2], not classes"),
        (Classes(), (2, 3), torch.ones(2, 3), "dtype float32 and shape [2, 3], not classes"),
        (Classes(), (2, 3), torch.zeros(2, 1, dtype=torch.long), "shape [2, 1], not classes"),
        (Map(), (2, 3), torch.zeros(2, dtype=torch.long), "not [n, classes, ...]"),
        (Values(("a",)), (2, 2), torch.zeros(2, 2), "[n, 2], not 1 numbers an example"),
        (Values(units=("m",)), (2, 2), torch.zeros(2, 2), "[n, 2], not 1 numbers an example"),
        (Values(), (2, 2), torch.zeros(2), "there must be a number for each target"),
        (Values(), (2, 3, 4), torch.zeros(2, 4, 3), "there must be a number for each target"),
        (Labels(("a",)), (2, 2), torch.zeros(2, 2), "not 1 scores, one for each name"),
        (Labels(), (2,), torch.zeros(2), "[n], not [n, labels]"),
        (Labels(), (2, 3), torch.zeros(2), "a 0 or a 1 for each label"),
    ],
)
def test_outputs_that_are_not_as_the_task_says_are_one_line(outputs, shape, targets, said):
    with pytest.raises(InputError) as caught:
        outputs.measure(torch.zeros(shape), targets)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [255, -1, 0.5, math.nan])
def test_labels_that_are_neither_0_nor_1_are_refused_as_data(wrong, monkeypatch):
    found = task("Tags")
    inputs, targets = found.data(None, True)
    targets = targets.float()
    targets[3, 1] = wrong
    monkeypatch.setattr(found, "data", lambda *_, **__: Examples(inputs, targets))
    with pytest.raises(DataError, match=r"^--task: the targets of Labels must be 0 or 1, not "):
        load_examples(found, None, train=True)


def test_probabilities_of_classes_are_targets_too():
    targets = torch.tensor([[0.2, 0.8], [0.9, 0.1]])
    scores = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert Classes().measure(scores, targets) == {"accuracy": 0.5}
    assert Classes().loss(scores, targets) == cross_entropy(scores, targets)


def test_a_number_of_a_column_is_compared_with_its_own_target_only():
    outputs, targets = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 5.0])
    assert Values().loss(outputs, targets).item() == pytest.approx(4 / 3)
    assert Values().measure(outputs, targets)["mean_absolute_error"] == pytest.approx(2 / 3)


def test_what_a_task_does_not_say_is_guessed_only_where_it_can_be_nothing_else():
    whole, real = torch.zeros(2, dtype=torch.long), torch.zeros(2)
    silent, tiny = task("OwnLoss"), load_task("tests.tasks:Tiny")
    assert silent.outputs_like(torch.zeros(2), real) is None
    assert silent.outputs_like(torch.zeros(2, 1), whole) is None
    assert silent.outputs_like(torch.zeros(2, 3), real) is None
    assert silent.outputs_like(torch.zeros(2, 3)) is None
    assert silent.outputs_like((torch.zeros(2, 3),), whole) is None
    assert silent.outputs_like(torch.zeros(2, 3), whole) == Classes()
    assert tiny.outputs_like(torch.zeros(2, 3)) == Classes()
    assert tiny.outputs_like(torch.zeros(2, 3, 4, 4)) == Map()
    assert task("TwoInputs").outputs_like(torch.zeros(2, 3)) == Classes(("a", "b", "c"))
    with pytest.raises(InputError, match="the model returns tuple, not one tensor"):
        tiny.outputs_like((torch.zeros(2, 3),))


def test_answers_are_what_the_outputs_mean():
    def answers(outputs, raw, count=3):
        return outputs.answers(outputs.predict(np.array([raw]))[0], count)

    found = answers(Classes(("a", "b", "c")), [0.0, 9.0, 1.0], 2)
    assert [(a.label, a.said) for a in found] == [("b", "99.95%"), ("c", "0.03%")]
    found = answers(Values(("price", "age"), ("EUR", "")), [12.5, 3.0])
    assert [(a.label, a.said) for a in found] == [("price", "12.5 EUR"), ("age", "3")]
    assert [(a.label, a.value) for a in answers(Values(), 7.25)] == [("value", 7.25)]
    assert [a.label for a in answers(Values(), [[1, 2], [3, 4]])] == ["0,0", "0,1", "1,0", "1,1"]
    found = answers(Labels(("a", "b", "c")), [0.0, -1.0, 2.0], 1)
    assert [(a.label, a.holds) for a in found] == [("c", True), ("a", True)]
    assert [a.holds for a in answers(Labels(threshold=0.9), [0.0, -1.0, 2.0])] == [False] * 3
    scores = np.array([[[9, 0, 0]], [[0, 9, 9]], [[1, 1, 1]]])
    found = answers(Map(("sky", "road", "car")), scores)
    assert [(a.label, a.said) for a in found] == [("road", "66.67%"), ("sky", "33.33%")]


def test_scores_that_are_far_from_zero_have_probabilities():
    far = np.array([[-1e4, 1e4]])
    assert Labels().predict(far).tolist() == Classes().predict(far).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "outputs",
    [
        Classes(["a", "b"]),
        Map(["a", "b"]),
        NextSymbol(),
        Values(["price"], ["EUR"]),
        Labels(["a"], threshold=0.9),
    ],
)
def test_what_is_described_is_loaded_as_it_was(outputs):
    described = json.loads(json.dumps(describe(outputs)))
    assert describe(load(described)) == described
    assert type(load(described)) is type(outputs)


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"kind": "none"},
        {"kind": "classes", "units": []},
        {"kind": "labels", "names": [3]},
        {"kind": "labels", "names": 3},
        {"kind": "values", "names": [], "units": [None]},
        {"kind": "labels", "names": [], "threshold": "a"},
    ],
)
def test_what_describes_no_outputs_is_refused(described):
    with pytest.raises(ValueError, match="no description of outputs"):
        load(described)


def test_hyperparameters_that_a_model_is_made_by_reach_it():
    sized = task("Sized")
    assert sized.build("mlp", {})[0].out_features == 3
    model = sized.build("mlp", {"width": 5.0, "dropout": 0.25, "other": "x"})
    assert (model[0].out_features, model[1].p) == (5, 0.25)
    assert task("Column").build("linear", {"width": 5}).out_features == 1
