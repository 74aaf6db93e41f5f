"""What a text model has to beat: perplexities of a unigram and a bigram model, well tuned.

Unigram: add-k. Bigram: interpolated Kneser-Ney with one discount (Chen and Goodman 1998,
section 4.1.6), over add-k counts of the words that come before. Trained on all training
sequences in one place, which no federated run may have. Pure functions of class indices, but
`perplexities`, which reads a run.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.tasks import Examples, load_examples
from scripts.trained_run import load_trained, text_task

Tokens = NDArray[np.int64]
Floats = NDArray[np.float64]

_ADDED = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_DISCOUNTS = (0.5, 0.6, 0.7, 0.8, 0.9)
_TUNE_ON_EVERY = 10


class Pairs(NamedTuple):
    """Class indices of tokens, and of the token after each of them; of one shape [n, T]."""

    before: Tokens
    after: Tokens


def unigram(train: Pairs, test: Pairs, classes: int, added: float) -> Floats:
    """Return the probability of each of the test's tokens, in their order."""
    return _add_k(np.bincount(train.after.ravel(), minlength=classes), added)[test.after.ravel()]


def bigram(train: Pairs, test: Pairs, classes: int, added: float, discount: float) -> Floats:
    """Return the probability of each of the test's tokens after the one before it."""
    pairs, counts = np.unique(_joined(train, classes), return_counts=True)
    first, second = pairs // classes, pairs % classes
    # In how many different pairs a token is the first, and the second.
    followers = np.bincount(first, minlength=classes)
    lower = _add_k(np.bincount(second, minlength=classes), added)
    seen = np.bincount(train.before.ravel(), minlength=classes)

    before, wanted = test.before.ravel(), _joined(test, classes)
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    count = np.where(pairs[place] == wanted, counts[place], 0)
    total = np.maximum(seen[before], 1)
    direct = np.maximum(count - discount, 0) / total
    # All of it for a token that was never seen before another.
    left = np.where(seen[before] > 0, discount * followers[before] / total, 1.0)
    mixed: Floats = direct + left * lower[test.after.ravel()]
    return mixed


def perplexity(probabilities: Floats) -> float:
    """Return exp of the mean negative log-probability."""
    return float(np.exp(-np.log(probabilities).mean()))


def baselines(train: Pairs, test: Pairs, classes: int) -> dict[str, float]:
    """Return the test's perplexity by "unigram" and "bigram", tuned on a tenth of the training.

    Args:
        train: at least two sequences.
        test: at least one.
        classes: that there are.

    What is tuned is chosen on every tenth sequence, by counts of the others.
    """
    chosen = np.arange(len(train.after)) % _TUNE_ON_EVERY == 0
    rest, tuning = (Pairs(*(part[rows] for part in train)) for rows in (~chosen, chosen))
    added = min(_ADDED, key=lambda k: perplexity(unigram(rest, tuning, classes, k)))
    grid = [(k, discount) for k in _ADDED for discount in _DISCOUNTS]
    best = min(grid, key=lambda tried: perplexity(bigram(rest, tuning, classes, *tried)))
    return {
        "unigram": perplexity(unigram(train, test, classes, added)),
        "bigram": perplexity(bigram(train, test, classes, *best)),
    }


def perplexities(
    run_dir: Path, data_dir: Path | None = None, named: str | None = None
) -> dict[str, float]:
    """Return the held-out perplexity of a run's best model, of "unigram" and of "bigram".

    Raises:
        InputError: there is no run of a text task, or no text.
    """
    trained = load_trained(run_dir, task=named)
    task, model = text_task(trained), trained.model
    data_dir = data_dir or Path(trained.options.get("data_dir", "data"))
    train, held_out = (load_examples(task, data_dir, train=train) for train in (True, False))
    if len(train.inputs) < 2:
        raise InputError(f"--data-dir: {data_dir} has too little text to count words in")
    loss = task.evaluate(model, held_out).metrics["loss"]
    # Of one symbol, so that what comes out has one place.
    classes = model(held_out.inputs[:1, :1]).shape[1]
    return {"model": math.exp(loss)} | baselines(_pairs(train), _pairs(held_out), classes)


def _joined(pairs: Pairs, classes: int) -> Tokens:
    return pairs.before.ravel() * classes + pairs.after.ravel()


def _add_k(counts: NDArray[np.int64], added: float) -> Floats:
    smoothed: Floats = (counts + added) / (counts.sum() + added * len(counts))
    return smoothed


def _pairs(examples: Examples) -> Pairs:
    return Pairs(examples.inputs.numpy(), examples.targets.numpy())
