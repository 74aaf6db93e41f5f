"""The shell around the engine: sessions, assignments, uploads, and the coordinator."""
