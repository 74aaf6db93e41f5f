"""The run as an operator reads it: a line, tables, and the live view of a terminal.

Pure: from the Admin service's messages to what rich prints.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from common.printable import counted, printable
from protos import federated_pb2 as pb
from scripts.text import duration, natural, size
from server.storage.columns import Shown, columns

# Of a round; its updates are shown with its cohort, and for a spread there is no space.
_COLUMNS = [
    column
    for column in columns(shown=Shown.TERMINAL)
    if column.group != "outcome" and not column.spread
]
# In the order in which the live view shows them.
_STATES = {
    "pushing": "cyan",
    "training": "green",
    "evaluating": "magenta",
    "pulling": "cyan",
    "failed": "red",
    "lost": "red",
    "done": "blue",
    "waiting": "dim",
}
_WORKING = frozenset({"pushing", "training", "evaluating", "pulling"})
# Above the clients, between the tables, and their headings.
_FIXED_LINES = 7
# Columns that all of a table takes; of a bar.
_WIDE = 76
_BAR = 24


def run_line(run: pb.Run) -> str:
    """Return the run as it is now."""
    attempt = f", attempt {run.round.attempt}" if run.round.attempt > 1 else ""
    parts = [
        f"{printable(run.run_id)}: {_state(run)}",
        f"round {run.round.number} of {run.target_round_count} {_phase(run.round)}{attempt}",
        f"{run.round.accepted_count} of {run.round.report_goal} updates",
        counted(run.live_client_count, "client"),
        f"model {run.model.version} {run.model.digest.blake3[:12]}",
    ]
    if run.failure_message:
        parts.append(printable(run.failure_message))
    return " | ".join(parts)


def rounds_table(rounds: Sequence[pb.Round], *, wide: bool = True) -> Table:
    """Return rounds that have ended, a row each."""
    table = _table("round", *["ended"] * wide, "updates", *(column.short for column in _COLUMNS))
    for found in rounds:
        updates = f"{found.accepted_count} of {found.cohort_size}"
        values = (
            column.text(found.metrics[column.name]) if column.name in found.metrics else "-"
            for column in _COLUMNS
        )
        table.add_row(str(found.number), *[_phase(found)] * wide, updates, *values)
    return table


def clients_table(clients: Sequence[pb.Client], *, wide: bool = True) -> Table:
    """Return clients, a row each."""
    table = _table("client", "state", "for", "part", "examples", "loss", *["down", "up"] * wide)
    # Where there is too little space, only ids are cut short.
    table.columns[0].no_wrap = False
    for client in clients:
        state = _state_of(client)
        table.add_row(
            Text(printable(client.client_id), no_wrap=True, overflow="ellipsis"),
            Text(state, _STATES[state]),
            _time(client.state_duration),
            str(client.partition) if client.HasField("partition") else "-",
            str(client.num_examples) if client.HasField("num_examples") else "-",
            f"{client.train_loss:.4f}" if client.HasField("train_loss") else "-",
            *[_size(client.bytes_down), _size(client.bytes_up)] * wide,
        )
    return table


@dataclass(frozen=True)
class LiveView:
    """A run on as much of a terminal as there is: bars, clients, and the last rounds.

    Args:
        rounds: that have ended, newest first.
        problem: why this is no longer how it is; empty: it is.
    """

    run: pb.Run
    clients: Sequence[pb.Client]
    rounds: Sequence[pb.Round]
    problem: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or options.size.height
        notes = [note for note in (self.run.failure_message, self.problem) if note]
        yield self._heading()
        for note in notes:
            yield Text(printable(note), "bold red", no_wrap=True, overflow="ellipsis")
        yield self._bars()
        space = max(2, height - _FIXED_LINES - len(notes))
        num_rounds = min(len(self.rounds), max(space // 3, space - len(self.clients)))
        yield Text()
        wide = options.max_width >= _WIDE
        # As they were, not as they are.
        style = "dim" if self.problem else ""
        for part in self._clients(space - num_rounds, wide):
            yield Styled(part, style)
        if num_rounds:
            yield Text()
            yield rounds_table(self.rounds[:num_rounds], wide=wide)

    def _heading(self) -> Text:
        run, now = self.run, self.run.round
        attempt = f", attempt {now.attempt}" if now.attempt > 1 else ""
        colour = "bold red" if run.failure_message else "bold green"
        clients = counted(run.live_client_count, "client")
        heading = Text.assemble(
            (printable(run.run_id), "bold"),
            f"  {printable(run.task_name)}  ",
            ("no connection", "bold red") if self.problem else (_state(run), colour),
            f"  round {now.number} {_phase(now)}{attempt}  {clients}",
            no_wrap=True,
            overflow="ellipsis",
        )
        for count, what in ((now.refused_count, "refused"), (now.dropped_count, "dropped")):
            if count:
                heading.append(f"  {count} {what}", "red")
        return heading

    def _bars(self) -> Table:
        run, now = self.run, self.run.round
        bars = Table.grid(padding=(0, 1))
        bars.add_column(no_wrap=True)
        bars.add_column(width=_BAR)
        bars.add_column(no_wrap=True)
        done = f"{run.model.version} of {run.target_round_count}{self._time_left()}"
        bars.add_row("rounds", _bar(run.target_round_count, run.model.version), done)
        updates = f"{now.accepted_count} of {now.report_goal}"
        if now.HasField("time_remaining") and not self.problem:
            updates += f", deadline in {_time(now.time_remaining)}"
        bars.add_row("updates", _bar(now.report_goal, now.accepted_count), updates)
        return bars

    def _time_left(self) -> str:
        """Return what the rounds to come will take if they are like the last ones."""
        last = [found.metrics["duration_seconds"] for found in self.rounds if found.metrics]
        to_come = self.run.target_round_count - self.run.model.version
        active = self.run.state == pb.Run.STATE_ACTIVE and not self.problem
        if not last or not to_come or not active:
            return ""
        return f", about {duration(round(to_come * sum(last) / len(last)))} left"

    def _clients(self, space: int, wide: bool) -> Iterator[RenderableType]:
        order = list(_STATES)
        found = sorted(self.clients, key=lambda c: (_rank(c, order), natural(c.client_id)))
        shown = len(found) if len(found) <= space else max(1, space - 1)
        yield clients_table(found[:shown], wide=wide)
        rest = Counter(map(_state_of, found[shown:]))
        if rest:
            kinds = ", ".join(f"{rest[state]} {state}" for state in order if rest[state])
            yield Text(f"... and {rest.total()} more: {kinds}", "dim", no_wrap=True)


def _rank(client: pb.Client, order: Sequence[str]) -> int:
    state = _state_of(client)
    return 0 if state in _WORKING else order.index(state)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for index, name in enumerate(columns):
        words = index == 0 or name in ("state", "ended")
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    return table


def _bar(total: int, completed: int) -> ProgressBar:
    return ProgressBar(max(1, total), completed, complete_style="cyan", finished_style="green")


def _state(run: pb.Run) -> str:
    return pb.Run.State.Name(run.state).removeprefix("STATE_").lower()


def _phase(found: pb.Round) -> str:
    return pb.Round.Phase.Name(found.phase).removeprefix("PHASE_").lower()


def _state_of(client: pb.Client) -> str:
    return pb.Client.State.Name(client.state).removeprefix("STATE_").lower()


def _size(num_bytes: int) -> str:
    return size(num_bytes) if num_bytes else "-"


def _time(span: Duration) -> str:
    return duration(round(span.ToMilliseconds() / 1000))
