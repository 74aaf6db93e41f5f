"""From accepted updates to a new model: weights, the fold, server optimizers, strategies."""
