"""The progress bars of a server on a terminal: rounds, and the cohort's reports."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.engine.events import Phase
from server.run.offers import Offers
from server.run.status import RunStatus

_KEEPALIVE_SECONDS = 60.0


async def show_progress(status: RunStatus, offers: Offers) -> None:
    """Draw two bars below the log until the run ends or the task is cancelled."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        rounds = progress.add_task("rounds", total=status.view.rounds)
        reports = progress.add_task("waiting for clients", total=None)
        while not status.ended:
            view = status.view
            progress.update(rounds, completed=offers.newest_model.version)
            if view.phase is Phase.SELECTING:
                progress.update(
                    reports,
                    description="waiting for clients",
                    total=view.min_clients,
                    completed=len(view.live),
                )
            else:
                progress.update(
                    reports,
                    description=f"round {view.round} {view.phase.value}",
                    total=view.goal,
                    completed=len(view.accepted),
                )
            await status.wait_for_change(status.revision, _KEEPALIVE_SECONDS)
