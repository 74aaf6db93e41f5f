"""Writes a run's report: a page, its plots, and a model card. Reads the run directory only."""

from __future__ import annotations

import sys
from pathlib import Path

from common.errors import InputError
from scripts.cli import command_line, run_app
from scripts.reporting import card, page, plots
from scripts.reporting.facts import collect

app = command_line("report")


@app.default
def report(run: Path, /, *, output: Path | None = None, task: str | None = None) -> None:
    """Write a run's report: report.html, its plots as PNG, and a model card, README.md.

    Works while the run goes on, too, and changes nothing in its directory but the output's folder.

    Args:
        run: The run directory.
        output: Folder to write to; what is there is written over. RUN/report if not given.
        task: The run's task if it is your own: its code is run here.
    """
    facts = collect(run, task)
    folder = output or run / "report"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        drawn = plots.draw_all(facts)
        svgs = {name: plots.save(figure, folder / f"{name}.png") for name, figure in drawn.items()}
        (folder / "report.html").write_text(page.render(facts, svgs), encoding="utf-8")
        (folder / "README.md").write_text(card.render(facts, svgs.keys()), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output: can't write {folder}: {error.strerror}") from error
    print(f"{facts.run_id}: {facts.progress}")
    for note in facts.notes:
        print(f"Note:       {note}")
    print(f"Report:     {folder / 'report.html'}")
    print(f"Model card: {folder / 'README.md'}")


if __name__ == "__main__":
    sys.exit(run_app(app))
