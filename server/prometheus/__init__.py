"""The run as Prometheus scrapes it."""
