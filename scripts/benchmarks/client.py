"""What a client costs: its training steps, its transfers, its memory, and bytes on the wire."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from client.data import LocalData
from client.trainer import Trainer
from common.tasks import Examples, Task, load_task
from common.training import TrainConfig
from scripts.benchmarks.measurements import Figure, seconds_of
from scripts.benchmarks.rounds import floor_of
from scripts.testbed.processes import Process
from scripts.testbed.proxy import proxying
from scripts.testbed.servers import Server, client_of, serving
from scripts.testbed.tasks import SIZES

_BATCH = 10
_SAMPLE_SECONDS = 0.002


class Case(NamedTuple):
    """A model that travels, by name; the rounds; and the examples of a training, ten a step."""

    model: str
    rounds: int
    examples: int
    times: int


_FULL = Case("100M", 4, 1000, 7)
_SMALL = Case("1.66M", 2, 200, 3)


def measure(small: bool) -> Iterator[Figure]:
    """Yield all figures; within 30 seconds, and without the transfers', if `small`."""
    case = _SMALL if small else _FULL
    for model in ("cnn", "mlp"):
        yield _steps(model, case)
    yield from _wire_bytes(case)
    if not small:
        yield from _transfers(case)


def _steps(name: str, case: Case) -> Figure:
    """Measure steps a second of the trainer, and of the shortest loop that trains the same."""
    torch.set_num_threads(1)
    task = load_task("mnist")
    generator = torch.Generator().manual_seed(0)
    examples = Examples(
        torch.rand(case.examples, 1, 28, 28, generator=generator),
        torch.randint(10, (case.examples,), generator=generator),
    )
    config = TrainConfig(local_epochs=1, batch_size=_BATCH, learning_rate=0.01)
    trainer = Trainer(task, name, "cpu")
    base = task.models[name]().state_dict()
    update = {key: torch.empty_like(value) for key, value in base.items()}
    data = LocalData(examples, examples)
    steps = case.examples // _BATCH
    bare, ours = [], []
    for _ in range(case.times):
        bare.append(seconds_of(lambda: _shortest_loop(task, name, examples)))
        ours.append(
            seconds_of(
                lambda: trainer.train(base, update, data, config, 0, lambda _done, _all: None)
            )
        )
    return Figure(
        name=f"training steps, {name}",
        value=steps / min(ours),
        unit="1/s",
        floor=steps / min(bare),
        sizes={"steps": steps, "batch": _BATCH},
    )


def _shortest_loop(task: Task, name: str, examples: Examples) -> None:
    model = task.models[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in torch.randperm(len(examples.inputs)).split(_BATCH):  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        cross_entropy(model(examples.inputs[batch]), examples.targets[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _wire_bytes(case: Case) -> Iterator[Figure]:
    """Count what goes over the wire, framing and all, beside the models and updates in it."""
    with ExitStack() as stack:
        server = stack.enter_context(_server(case))
        size = server.model_size
        proxy = stack.enter_context(proxying(server.address))
        client = stack.enter_context(client_of(proxy.address, 0))
        server.process.wait()
        client.wait()
        for way, passed in proxy.passed.items():
            yield Figure(
                name=f"bytes on the wire, {way}",
                value=passed,
                unit="B",
                floor=size * case.rounds,
                sizes={"parameters": SIZES[case.model]},
            )


def _transfers(case: Case) -> Iterator[Figure]:
    """Measure one client's rounds: pull, load, diff, push."""
    sizes = {"parameters": SIZES[case.model]}
    with _server(case) as server:
        size = server.model_size
        with client_of(server.address, 0) as client:
            peak = 0
            while not server.process.ended:
                peak = max(peak, client.memory("RssAnon"))
                time.sleep(_SAMPLE_SECONDS)
            client.wait()
        seconds = server.median("collect_seconds")
    floor, _ = floor_of(size, 1, case.rounds)
    with Process("scripts.benchmarks.bare", case.model) as bare:
        bare.hear()
        need = bare.memory("RssAnon")
    yield Figure(name="pull, load, diff, push", value=seconds, unit="s", floor=floor, sizes=sizes)
    yield Figure(
        name="client memory above the model in training",
        value=peak - need,
        unit="B",
        floor=size,
        sizes=sizes,
    )


def _server(case: Case) -> AbstractContextManager[Server]:
    one = ("--min-clients", 1, "--num-partitions", 1)
    return serving("--model", case.model, "--rounds", case.rounds, *one)
