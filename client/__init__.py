"""The client: joins a server, trains on its own partition and pushes updates."""
