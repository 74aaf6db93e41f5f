"""The progress bars of a server on a terminal: rounds, and the cohort's reports."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.engine.rounds import Phase
from server.run.coordinator import Coordinator

_KEEPALIVE_SECONDS = 60.0


async def show_progress(coordinator: Coordinator) -> None:
    """Draw two bars below the log until the run ends or the task is cancelled."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        rounds = progress.add_task("rounds", total=coordinator.policy.rounds)
        reports = progress.add_task("waiting for clients", total=None)
        while not coordinator.ended:
            state = coordinator.state
            progress.update(rounds, completed=coordinator.newest_model.version)
            if state.phase is Phase.SELECTING:
                progress.update(
                    reports,
                    description="waiting for clients",
                    total=coordinator.policy.min_clients,
                    completed=len(state.live),
                )
            else:
                progress.update(
                    reports,
                    description=f"round {state.round} {state.phase.value}",
                    total=state.goal,
                    completed=len(state.accepted),
                )
            await coordinator.wait_for_change(coordinator.revision, _KEEPALIVE_SECONDS)
