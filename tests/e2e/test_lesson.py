"""The lesson runs from its first cell to its last, and shows what its page shows."""

import re

import pytest

from tests.lesson import LESSON, solutions


def _shown(cell):
    """Return what a cell shows: the kinds of its outputs, and its text but for the numbers."""
    kinds = [output.output_type for output in cell.outputs]
    text = "".join(output.get("text", "") for output in cell.outputs)
    # Another processor rounds differently.
    return kinds, re.sub(r"-?\d[\d.,]*", "#", text)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_every_cell_and_solution_runs_and_shows_what_the_page_shows():
    nbformat = pytest.importorskip("nbformat", reason='needs the extra "full"')
    from scripts.teaching.execute import execute

    page = nbformat.read(LESSON, as_version=4)
    stored = [_shown(cell) for cell in page.cells if cell.cell_type == "code"]
    # Before the last cell, which clears up.
    page.cells[-1:-1] = [nbformat.v4.new_code_cell(code) for code in solutions(page)]
    execute(page)
    cells = [cell for cell in page.cells if cell.cell_type == "code"]
    again = [_shown(cell) for cell in cells]
    count = len(solutions(page))
    assert again[: -count - 1] + again[-1:] == stored
