"""What a person runs: each script is a shell file that calls a module here."""
