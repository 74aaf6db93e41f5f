"""Faults on purpose, behind `./scripts/chaos`: processes killed, paused and cut off (Linux)."""
