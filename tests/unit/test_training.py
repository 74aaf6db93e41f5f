"""Local training and evaluation, by hand."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from common.training import TrainConfig, evaluate, train

INPUTS = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(10) % 2


class Stopped(Exception):
    """Raised by a test's on_step."""


def model():
    """Return a linear classifier, the same each time."""
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.arange(6.0).reshape(2, 3) / 10)
        linear.bias.zero_()
    return linear


def scalar(value):
    """Return a model that multiplies by one weight."""
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, value)
    return linear


def trained(config, seed=0, on_step=lambda _done, _total: None):
    found = model()
    metrics = train(found, INPUTS, TARGETS, config, cross_entropy, seed, on_step)
    return found.state_dict(), metrics


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_is_one_of_sgd_by_hand():
    one = scalar(2.0)
    metrics = train(
        one,
        torch.tensor([[3.0]]),
        torch.tensor([[1.0]]),
        TrainConfig(learning_rate=0.01),
        mse_loss,
        0,
        lambda _done, _total: None,
    )
    # (3w - 1)^2 = 25, its gradient 2 * (3w - 1) * 3 = 30.
    assert metrics == {"loss": 25.0}
    assert one.weight.item() == pytest.approx(2.0 - 0.01 * 30)


def test_the_proximal_term_pulls_towards_the_weights_at_the_start():
    one = scalar(2.0)
    config = TrainConfig(learning_rate=0.01, proximal_mu=5.0, local_epochs=2)
    no_step = lambda _done, _total: None  # noqa: E731
    train(one, torch.tensor([[3.0]]), torch.tensor([[1.0]]), config, mse_loss, 0, no_step)
    first = 2.0 - 0.01 * 30  # At the start the term is 0.
    second = first - 0.01 * (2 * (3 * first - 1) * 3 + 5.0 * (first - 2.0))
    assert one.weight.item() == pytest.approx(second)


def test_momentum_and_weight_decay_are_those_of_torch():
    config = TrainConfig(batch_size=10, local_epochs=3, momentum=0.9, weight_decay=0.1)
    reference = model()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(reference(INPUTS), TARGETS).backward()
        optimizer.step()
    found, _ = trained(config)
    for name, expected in reference.state_dict().items():
        torch.testing.assert_close(found[name], expected)


def test_frozen_parameters_stay_as_they_are():
    found = model()
    found.bias.requires_grad_(False)
    config = TrainConfig(proximal_mu=1.0, weight_decay=0.5)
    train(found, INPUTS, TARGETS, config, cross_entropy, 0, lambda _done, _total: None)
    assert found.bias.tolist() == [0.0, 0.0]
    assert not torch.equal(found.weight, model().weight)


def test_the_same_seed_gives_the_same_bytes_whatever_the_global_state():
    config = TrainConfig(batch_size=3, local_epochs=2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, first_metrics = trained(config)
        torch.manual_seed(2)
        second, second_metrics = trained(config)
    assert same(first, second)
    assert first_metrics == second_metrics


def test_another_seed_takes_the_examples_in_another_order():
    config = TrainConfig(batch_size=3)
    assert not same(trained(config, seed=0)[0], trained(config, seed=1)[0])


def test_each_step_is_told_and_the_last_batch_may_be_smaller():
    steps = []
    config = TrainConfig(batch_size=4, local_epochs=2)
    trained(config, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 6) for done in range(1, 7)]


def test_each_epoch_takes_each_example_once():
    seen = []

    class Recording(nn.Linear):
        def forward(self, inputs):
            seen.extend(inputs[:, 0].tolist())
            return super().forward(inputs)

    config = TrainConfig(batch_size=4, local_epochs=2)
    train(Recording(3, 2), INPUTS, TARGETS, config, cross_entropy, 0, lambda _done, _total: None)
    for epoch in (seen[:10], seen[10:]):
        assert sorted(epoch) == sorted(INPUTS[:, 0].tolist())
    assert seen[:10] != seen[10:]


def test_what_on_step_raises_ends_the_training():
    steps = []

    def stop_after_two(done, _total):
        steps.append(done)
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        trained(TrainConfig(batch_size=1), on_step=stop_after_two)
    assert steps == [1, 2]


def test_the_training_loss_is_the_mean_over_examples_not_over_batches():
    config = TrainConfig(batch_size=7, learning_rate=1e-12)  # Batches of 7 and 3.
    _, metrics = trained(config)
    assert metrics["loss"] == pytest.approx(cross_entropy(model()(INPUTS), TARGETS).item())


def test_evaluation_is_the_mean_over_all_batches():
    inputs = torch.randn(1025, 3, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(1025) % 2
    outputs = model()(inputs)
    metrics = evaluate(model(), inputs, targets, cross_entropy).metrics
    assert metrics["loss"] == pytest.approx(cross_entropy(outputs, targets).item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((outputs.argmax(1) == targets).double().mean())


def test_accuracy_of_sequences_is_the_share_of_right_places():
    scores = torch.tensor([[[9.0, 0.0, 9.0], [0.0, 9.0, 0.0]]])  # Classes 0, 1, 0.
    targets = torch.tensor([[0, 1, 1]])
    metrics, confusion = evaluate(nn.Identity(), scores, targets, cross_entropy)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert confusion is None


def test_a_confusion_matrix_has_a_row_for_each_true_class_over_all_batches():
    scores = torch.eye(3)[[0, 1, 1, 2, 0, 0]]
    targets = torch.tensor([0, 1, 0, 2, 2, 0])
    confusion = [[2, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert evaluate(nn.Identity(), scores, targets, cross_entropy).confusion == confusion
    many = evaluate(nn.Identity(), scores.repeat(200, 1), targets.repeat(200), cross_entropy)
    assert many.confusion == [[200 * count for count in row] for row in confusion]
    assert many.metrics["accuracy"] == pytest.approx(4 / 6)


def test_a_class_to_ignore_and_more_than_a_hundred_classes_have_no_place_in_the_matrix():
    targets = torch.tensor([1, -100])
    found = evaluate(nn.Identity(), torch.eye(100)[:2], targets, cross_entropy)
    assert sum(map(sum, found.confusion)) == found.confusion[1][0] == 1
    targets = torch.tensor([1, 0])
    assert evaluate(nn.Identity(), torch.eye(101)[:2], targets, cross_entropy).confusion is None


def test_numbers_have_no_confusion_matrix():
    found = evaluate(nn.Identity(), torch.ones(4, 1), torch.ones(4), lambda *_: torch.tensor(0.5))
    assert (found.metrics["loss"], found.confusion) == (0.5, None)


def test_dropout_is_on_in_training_and_off_in_evaluation():
    dropout = nn.Sequential(nn.Dropout(0.5), model())
    losses = {evaluate(dropout, INPUTS, TARGETS, cross_entropy).metrics["loss"] for _ in range(5)}
    assert len(losses) == 1
    train(dropout, INPUTS, TARGETS, TrainConfig(), cross_entropy, 0, lambda _done, _total: None)
    assert dropout.training
    evaluate(dropout, INPUTS, TARGETS, cross_entropy)
    assert not dropout.training


class Normalised(nn.Module):
    """Normalises pictures of 2 x 2 first, then what is left of each: one number a channel."""

    def __init__(self):
        super().__init__()
        self.pictures, self.numbers = nn.BatchNorm2d(3), nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 2)

    def forward(self, inputs):
        return self.linear(self.numbers(self.pictures(inputs).mean((2, 3))))


def normalised(count, batch_size, epochs=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Normalised()
        inputs, targets = torch.randn(count, 3, 2, 2), torch.arange(count) % 2
    config = TrainConfig(local_epochs=epochs, batch_size=batch_size, learning_rate=0.1)
    steps = []
    train(model, inputs, targets, config, cross_entropy, 3, lambda *step: steps.append(step))
    return model, steps


@pytest.mark.parametrize(("count", "batch_size", "full"), [(9, 4, 2), (1, 4, 0), (3, 1, 0)])
def test_a_batch_of_one_example_is_normalised_by_what_is_known(count, batch_size, full):
    model, steps = normalised(count, batch_size, epochs=2)
    assert len(steps) == 2 * -(-count // batch_size)
    # A picture has a variance of its own; a number has none, and teaches no statistics.
    assert model.pictures.num_batches_tracked == len(steps)
    assert model.numbers.num_batches_tracked == 2 * full
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_its_task_has_frozen_stays_so():
    model = Normalised()
    model.train = lambda mode=True: nn.Module.train(model, mode) and model.numbers.eval()
    inputs, targets = torch.randn(5, 3, 2, 2), torch.zeros(5, dtype=torch.long)
    config = TrainConfig(batch_size=4)
    train(model, inputs, targets, config, cross_entropy, 3, lambda *_: None)
    assert not model.numbers.training
    assert model.numbers.num_batches_tracked == 0
