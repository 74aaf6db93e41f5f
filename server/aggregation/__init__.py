"""From accepted updates to a new model: weights, outliers, the fold."""
