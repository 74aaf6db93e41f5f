"""Experiments of papers with real processes: one file an experiment, each a sub-command."""
