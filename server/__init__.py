"""The server: selects cohorts, collects their updates, aggregates, evaluates and commits."""
