"""What `./scripts/chaos` does to real processes, and what must hold afterwards."""
