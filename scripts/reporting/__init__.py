"""One run's report: a page, its plots, and a model card."""
