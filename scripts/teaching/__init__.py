"""The lesson: a notebook, and what runs it from its first cell to its last."""
