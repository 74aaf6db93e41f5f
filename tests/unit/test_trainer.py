"""One assignment's work: from the global model to an update or an evaluation."""

import math

import pytest
import torch
from torch import nn

from client.data import LocalData
from client.trainer import Trainer, WorkFailed, choose_device
from common.algorithms import ClientHalf, ClientRound
from common.algorithms.scaffold import ScaffoldClient
from common.errors import InputError, TensorError
from common.tasks import Examples, Task
from common.training import Evaluation, TrainConfig, train

CONFIG = TrainConfig(batch_size=2, learning_rate=0.1)
ONE_STEP = TrainConfig(batch_size=8, learning_rate=0.1)


class Small(Task):
    """Two classes of three numbers."""

    models = {
        "linear": lambda: nn.Linear(3, 2),
        "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)),
        "normalised": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
    }

    def data(self, data_dir, train):
        raise NotImplementedError


class Reporting(Small):
    """One that reports the metrics it was made with."""

    def __init__(self, **metrics):
        self.metrics = metrics

    def train(self, *_):
        return self.metrics

    def evaluate(self, *_):
        return Evaluation(self.metrics)


class Diverging(Small):
    """One whose weights grow with each step."""

    def loss(self, outputs, _targets):
        return outputs.square().sum()


def examples(count, seed=0):
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return Examples(inputs, torch.arange(count) % 2)


DATA = LocalData(examples(8), examples(4, seed=1))


def begin(model="linear", task=None):
    """Return a trainer and a global model for it."""
    task = task or Small()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        base = task.models[model]().state_dict()
    return Trainer(task, model, "cpu"), base


def trained(trainer, base, seed=3, config=CONFIG, on_step=lambda _done, _total: None, half=None):
    """Return the update, and what belongs to it."""
    update = {name: torch.empty_like(tensor) for name, tensor in base.items()}
    return update, trainer.train(base, update, DATA, config, seed, on_step, half)


def adding(correction):
    """Return what adds to the gradients of the parameters with these names."""
    given = ClientRound({}, {"control": correction}, {}, CONFIG, frozenset())
    return ScaffoldClient(given)


class Halving(ClientHalf):
    """Halves the update, and says by how much it was shortened."""

    def after(self, update, num_steps):
        self.kept = {name: tensor.clone() for name, tensor in update.items()}
        for tensor in update.values():
            tensor.div_(2)
        return {"halved": 0.5}


def test_the_clients_half_of_an_algorithm_may_change_the_update_and_say_what_counts():
    trainer, base = begin()
    plain, _ = trained(trainer, base, config=ONE_STEP)
    half = Halving(ClientRound({}, {}, {}, CONFIG, frozenset()))
    halved, found = trained(trainer, base, config=ONE_STEP, half=half)
    assert same(halved, {name: tensor / 2 for name, tensor in plain.items()})
    assert same(half.kept, plain)
    assert found.scalars == {"num_steps": 1, "halved": 0.5}


def evaluated(trainer, base, data=DATA, fine_tune=None, on_step=lambda _done, _total: None):
    return trainer.evaluate(base, data, fine_tune, 3, on_step)


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_an_update_is_local_minus_base_with_the_number_of_examples():
    trainer, base = begin()
    local = nn.Linear(3, 2)
    local.load_state_dict(base)
    loss = Small().loss
    metrics = train(local, *DATA.train, CONFIG, loss, 3, lambda _done, _total: None)
    update, found = trained(trainer, base)
    expected = {name: tensor - base[name] for name, tensor in local.state_dict().items()}
    assert same(update, expected)
    assert (found.num_examples, found.metrics) == (8, metrics)


@pytest.mark.parametrize("model", ["linear", "dropout", "normalised"])
def test_the_same_seed_gives_the_same_update_whatever_was_trained_before(model):
    trainer, base = begin(model)
    first, _ = trained(trainer, base)
    trained(trainer, {name: tensor + 1 for name, tensor in base.items()}, seed=9)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        assert same(trained(trainer, base)[0], first)
    assert not same(trained(trainer, base, seed=4)[0], first)


def test_the_global_model_and_the_global_random_state_stay_as_they_are():
    trainer, base = begin("dropout")
    before = {name: tensor.clone() for name, tensor in base.items()}
    state = torch.get_rng_state()
    trained(trainer, base)
    evaluated(trainer, base, fine_tune=CONFIG)
    assert same(base, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_counters_are_part_of_the_update():
    trainer, base = begin("normalised")
    update, _ = trained(trainer, base)
    assert update["0.num_batches_tracked"].item() == 4
    assert update["0.num_batches_tracked"].dtype is torch.int64


def test_a_model_that_diverged_is_work_that_failed():
    trainer, base = begin(task=Diverging())
    config = TrainConfig(batch_size=2, learning_rate=100.0, local_epochs=20)
    with pytest.raises(WorkFailed, match="smaller --lr") as caught:
        trained(trainer, base, config=config)
    assert caught.value.reason == "UPDATE_NOT_FINITE"


def test_data_that_is_not_finite_is_named_as_the_reason():
    trainer, base = begin()
    train = examples(8)
    train.inputs[3, 1] = math.nan
    update = {name: torch.empty_like(tensor) for name, tensor in base.items()}
    data = LocalData(train, examples(4))
    with pytest.raises(WorkFailed, match="the inputs of 1 of its 8 examples hold NaN") as caught:
        trainer.train(base, update, data, CONFIG, 3, lambda _done, _total: None)
    assert caught.value.reason == "UPDATE_NOT_FINITE"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_work_that_failed(loss):
    trainer, base = begin(task=Reporting(loss=loss))
    with pytest.raises(WorkFailed, match="smaller --lr") as caught:
        trained(trainer, base)
    assert caught.value.reason == "LOSS_NOT_FINITE"


@pytest.mark.parametrize("model", ["linear", "normalised"])
def test_a_correction_is_added_to_each_gradient_and_to_none_after(model):
    trainer, base = begin(model)
    plain, found = trained(trainer, base, config=ONE_STEP)
    correction = {name: torch.randn(tensor.shape) for name, tensor in base.items()}
    corrected, _ = trained(trainer, base, config=ONE_STEP, half=adding(correction))
    parameters = dict(Small.models[model]().named_parameters())
    for name, tensor in plain.items():
        moved = 0.1 * correction[name] if name in parameters else 0
        torch.testing.assert_close(corrected[name], (tensor - moved).to(tensor.dtype))
    assert found.scalars == {"num_steps": 1}
    assert same(trained(trainer, base, config=ONE_STEP)[0], plain)


def test_each_local_step_is_counted():
    config = TrainConfig(batch_size=3, local_epochs=5)
    assert trained(*begin(), config=config)[1].scalars == {"num_steps": 5 * 3}


def test_without_a_number_of_steps_no_correction_can_be_counted():
    trainer, base = begin(task=Reporting(loss=1.0))
    with pytest.raises(WorkFailed, match="on_step") as caught:
        trained(trainer, base, half=adding({}))
    assert caught.value.reason == "STEPS_UNKNOWN"


def test_what_on_step_raises_ends_the_training_and_the_next_begins_anew():
    trainer, base = begin()
    expected, _ = trained(trainer, base)

    def stop(_done, _total):
        raise TimeoutError

    with pytest.raises(TimeoutError):
        trained(trainer, base, on_step=stop)
    assert same(trained(trainer, base)[0], expected)


def test_an_evaluation_is_over_the_validation_part():
    trainer, base = begin()
    model = nn.Linear(3, 2)
    model.load_state_dict(base)
    assert evaluated(trainer, base) == (4, Small().evaluate(model, DATA.validation).metrics)


def test_fine_tuning_is_training_whose_evaluation_stands_beside_the_first():
    trainer, base = begin("dropout")
    plain = evaluated(trainer, base)[1]
    update, _ = trained(trainer, base)
    local = {name: tensor + update[name] for name, tensor in base.items()}
    tuned = {f"fine_tuned_{k}": v for k, v in evaluated(trainer, local)[1].items()}
    count, found = evaluated(trainer, base, fine_tune=CONFIG)
    assert (count, found) == (4, pytest.approx(plain | tuned))
    assert found["fine_tuned_loss"] != found["loss"]


def test_what_was_fine_tuned_is_thrown_away_and_can_be_stopped():
    trainer, base = begin()
    first = evaluated(trainer, base, fine_tune=CONFIG)
    assert evaluated(trainer, base, fine_tune=CONFIG) == first

    def stop(_done, _total):
        raise TimeoutError

    with pytest.raises(TimeoutError):
        evaluated(trainer, base, fine_tune=CONFIG, on_step=stop)


def test_without_a_validation_part_there_is_nothing_to_evaluate():
    trainer, base = begin()
    data = LocalData(examples(8), examples(0))
    assert evaluated(trainer, base, data, fine_tune=CONFIG) == (0, {})


def test_an_evaluation_reports_finite_numbers_only():
    trainer, base = begin(task=Reporting(loss=math.inf, accuracy=0.5))
    assert evaluated(trainer, base) == (4, {"accuracy": 0.5})


def with_local_layers(seed=7):
    """Return a trainer whose normalisation stays with the client, and all tensors for it."""
    _, base = begin("normalised")
    local = [name for name in base if name.startswith("0.")]
    trainer = Trainer(Small(), "normalised", "cpu", local, seed)
    shared = {name: tensor for name, tensor in base.items() if name.startswith("1.")}
    return trainer, shared, shared | trainer.initial_layers


def test_local_layers_are_trained_and_are_no_part_of_the_update():
    trainer, shared, base = with_local_layers()
    update = {name: torch.empty_like(tensor) for name, tensor in shared.items()}
    trainer.train(base, update, DATA, CONFIG, 3, lambda _done, _total: None)
    whole, _ = trained(begin("normalised")[0], base)
    assert same(update, whole)
    kept = trainer.local_layers()
    assert kept.keys() | update.keys() == base.keys()
    assert not kept.keys() & update.keys()
    assert kept["0.num_batches_tracked"].item() == 4
    assert not torch.equal(kept["0.weight"], base["0.weight"])
    # Of the other client, who has its turn next.
    assert same(trainer.initial_layers, with_local_layers()[0].initial_layers)


def test_local_layers_begin_alike_with_the_same_seed():
    def first_layer(seed):
        return Trainer(Small(), "linear", "cpu", ["weight"], seed).initial_layers["weight"]

    assert torch.equal(first_layer(1), first_layer(1))
    assert not torch.equal(first_layer(1), first_layer(2))


def test_what_travels_has_the_size_and_the_names_of_the_other_tensors():
    trainer, shared, base = with_local_layers()
    assert trainer.model_size_bytes == sum(tensor.nbytes for tensor in shared.values())
    trainer.roles.check(shared)
    with pytest.raises(TensorError, match=r"'0\.bias' stays with the clients"):
        trainer.roles.check(base)
    with pytest.raises(TensorError, match=r"'1\.bias' is missing"):
        trainer.roles.check({"1.weight": shared["1.weight"]})


def frozen(model):
    """Return the model, whose first layer does not learn."""
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    return model


class Frozen(Small):
    """One whose first layer is frozen."""

    models = {"tuned": lambda: frozen(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))}


def test_a_correction_leaves_a_frozen_layer_alone():
    trainer, base = begin("tuned", Frozen())
    assert trainer.roles.trainable == {"1.weight", "1.bias"}
    plain, _ = trained(trainer, base, config=ONE_STEP)
    correction = {name: torch.ones_like(tensor) for name, tensor in base.items()}
    corrected, _ = trained(trainer, base, config=ONE_STEP, half=adding(correction))
    assert not corrected["0.weight"].any()
    torch.testing.assert_close(corrected["1.bias"], plain["1.bias"] - 0.1)


def test_of_local_layers_only_what_was_changed_is_kept():
    task = Frozen()
    with torch.random.fork_rng():
        travels = {"1.bias": task.models["tuned"]().state_dict()["1.bias"]}
    trainer = Trainer(task, "tuned", "cpu", ["0.weight", "0.bias", "1.weight"])
    assert trainer.own_layers() == {}
    base = travels | trainer.initial_layers
    update = {"1.bias": torch.empty(2)}
    trainer.train(base, update, DATA, CONFIG, 3, lambda _done, _total: None)
    assert trainer.own_layers().keys() == {"1.weight"}


def test_a_local_layer_that_diverged_is_work_that_failed():
    trainer, shared, base = with_local_layers()
    base["0.running_mean"] = torch.full((3,), math.inf)
    update = {name: torch.empty_like(tensor) for name, tensor in shared.items()}
    with pytest.raises(WorkFailed, match=r"0\.running_mean"):
        trainer.train(base, update, DATA, CONFIG, 3, lambda _done, _total: None)


def test_the_cpu_is_always_there():
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cuda", "mps", "cpu")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_missing_is_refused_by_the_name_of_the_flag(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"--device: there is no {device} here"):
        choose_device(device)
    assert choose_device("auto") == "cpu"
