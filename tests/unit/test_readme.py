"""The README holds what is there: its task is short."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_own_task_has_at_most_25_lines():
    block = re.search(r"```python\n(# moons.py.*?)```", README, re.DOTALL).group(1)
    assert len(block.splitlines()) <= 25
