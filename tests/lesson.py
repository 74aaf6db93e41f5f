"""What the tests of the lesson's page and of its run take from the notebook."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LESSON = ROOT / "scripts" / "teaching" / "lesson.ipynb"


def cells_of(page, kind):
    """Return the sources of the cells of one kind."""
    return ["".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == kind]


def solutions(page):
    """Return the code in the exercises' solutions, in their order."""
    text = "\n\n".join(cells_of(page, "markdown"))
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
