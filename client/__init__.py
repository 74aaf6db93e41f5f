"""The client: joins a server, trains on its own partition and pushes updates."""

import sys
from pathlib import Path

# `python -m` looks into the current folder first, which may hold a `common` of the user's own.
sys.path.insert(0, str(Path(__file__).parents[1]))
