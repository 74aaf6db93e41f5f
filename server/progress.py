"""What the best round is, and when that is reason to stop: pure functions of the metrics."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The best round so far. None: no round has been evaluated yet."""

    best_round: int | None = None
    best_score: float | None = None
    # Evaluated rounds since the best.
    stale: int = 0


def score_of(accuracy: float | None, loss: float | None) -> float | None:
    """Return what rounds are compared by, larger is better: the accuracy, else minus the loss."""
    if accuracy is not None:
        return accuracy
    return None if loss is None else -loss


def advance(progress: Progress, round_number: int, score: float | None) -> Progress:
    """Return the progress after a round; a round without a score changes nothing."""
    if score is None:
        return progress
    if progress.best_score is None or score > progress.best_score:
        return Progress(best_round=round_number, best_score=score)
    return Progress(
        best_round=progress.best_round, best_score=progress.best_score, stale=progress.stale + 1
    )


def should_stop(
    progress: Progress, accuracy: float | None, target: float | None, patience: int | None
) -> bool:
    """Say whether the target accuracy is reached, or `patience` evaluations brought no new best."""
    if target is not None and accuracy is not None and accuracy >= target:
        return True
    return patience is not None and progress.stale >= patience
