"""Exported models where there is no torch: their metadata, their answers, and an HTTP service."""
