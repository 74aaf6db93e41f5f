"""The run directory: checkpoints, rows of metrics, and what readers see of them."""
