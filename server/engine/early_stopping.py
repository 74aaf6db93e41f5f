"""What the best round is, and when that is reason to stop: pure functions of the metrics."""

import math
from dataclasses import dataclass, replace

# Evaluations in a row that show a model to be worthless, if no patience says how many.
_WORSE = 5


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The best round so far, and how the loss stands. None: no round has been evaluated yet."""

    best_round: int | None = None
    best_score: float | None = None
    # Evaluated rounds since the best.
    stale: int = 0
    first_loss: float | None = None
    # None with `worse`: it is not finite.
    last_loss: float | None = None
    # Evaluations in a row whose loss is above the first one's, or not finite.
    worse: int = 0


def score_of(accuracy: float | None, loss: float | None) -> float | None:
    """Return what rounds are compared by, larger is better: the accuracy, else minus the loss."""
    if accuracy is not None:
        return accuracy
    return None if loss is None else -loss


def advance(
    progress: Progress, round_number: int, score: float | None, loss: float | None = None
) -> Progress:
    """Return the progress after a round; a round without score and loss changes nothing.

    Args:
        progress: before it.
        round_number: of the round.
        score: what rounds are compared by.
        loss: of the evaluation that the score is of; it may be NaN or infinite.
    """
    if loss is not None:
        progress = _with_loss(progress, loss)
    if score is None:
        return progress
    if progress.best_score is None or score > progress.best_score:
        return replace(progress, best_round=round_number, best_score=score, stale=0)
    return replace(progress, stale=progress.stale + 1)


def _with_loss(progress: Progress, loss: float) -> Progress:
    if not math.isfinite(loss):
        return replace(progress, last_loss=None, worse=progress.worse + 1)
    first = loss if progress.first_loss is None else progress.first_loss
    worse = progress.worse + 1 if loss > first else 0
    return replace(progress, first_loss=first, last_loss=loss, worse=worse)


def worthless(progress: Progress, patience: int | None, diverging: bool) -> str | None:
    """Return why a model is worthless; None if it is not.

    It is when its loss is not finite, or has been above the first evaluation's for `patience`
    evaluations (5 without), or is above it while clients' training diverges.
    """
    if not progress.worse:
        return None
    if progress.last_loss is None:
        return "the model has become worthless: its loss is not finite"
    if not diverging and progress.worse < (patience or _WORSE):
        return None
    return (
        f"the model has become worthless: its loss is {progress.last_loss:.4g}, after the first "
        f"evaluated round it was {progress.first_loss:.4g}"
    )


def should_stop(
    progress: Progress, accuracy: float | None, target: float | None, patience: int | None
) -> bool:
    """Say whether the target accuracy is reached, or `patience` evaluations brought no new best."""
    if target is not None and accuracy is not None and accuracy >= target:
        return True
    return patience is not None and progress.stale >= patience
