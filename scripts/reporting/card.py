"""The model card: Markdown under a YAML head, as model hubs read it.

The head's fields are those of huggingface.co/docs/hub/model-cards. There is no licence among them:
no run says one.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from common.printable import counted
from common.tasks.inputs import Images
from common.tasks.outputs import NextSymbol
from scripts.reporting import wording
from scripts.reporting.facts import Facts
from scripts.reporting.wording import Table
from scripts.results import markdown_table
from server.storage.columns import COLUMNS

# Tasks whose data the hub has, by its name there.
_DATASETS = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}
# What means something in Markdown, wherever it stands in a line.
_SPECIAL = re.compile(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))")


def render(facts: Facts, plots: Collection[str]) -> str:
    """Return the card.

    Args:
        facts: what it tells.
        plots: the names of the PNG files beside it.
    """
    parts = [
        "\n".join(["---", *_yaml(_head(facts)), "---"]),
        f"# {_text(wording.title(facts))}",
        _introduction(facts),
        "## Training",
        "\n".join(f"- **{subject}:** {_text(text)}" for subject, text in wording.setup(facts)),
        *_results(facts, plots),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(facts)),
        *_usage(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _head(facts: Facts) -> dict[str, object]:
    task = facts.option("task")
    kind = _kind(facts)
    head: dict[str, object] = {}
    if kind != "other":
        head["pipeline_tag"] = kind
    strategy = facts.option("strategy")
    head["tags"] = ["federated-learning", "pytorch", *([strategy] if strategy else [])]
    if task in _DATASETS:
        head["datasets"] = [_DATASETS[task]]
    measured = list(_measured(facts))
    if measured:
        head["metrics"] = sorted({metric["type"] for _, metrics in measured for metric in metrics})
        results = [
            {
                "task": {"type": kind},
                "dataset": {"name": task, "type": _DATASETS.get(task, task), "split": split},
                "metrics": metrics,
            }
            for split, metrics in measured
        ]
        head["model-index"] = [{"name": facts.run_id, "results": results}]
    return head


def _kind(facts: Facts) -> str:
    """Return the hub's name for what the model does."""
    inputs, outputs = (facts.task.inputs, facts.task.declared) if facts.task else (None, None)
    if isinstance(inputs, Images):
        # What is not said is classes, as a rule.
        known = {"map": "image-segmentation", "values": "other"}
        return known.get(outputs.kind if outputs else "", "image-classification")
    if isinstance(outputs, NextSymbol):
        return "text-generation"
    return "other"


def _measured(facts: Facts) -> Iterator[tuple[str, list[dict[str, str | float]]]]:
    """Yield the best round's metrics on the server's data, and on the clients'."""
    sides = {"global": ("test", "test set"), "client": ("validation", "clients' validation sets")}
    for side, (split, where) in sides.items():
        found: list[dict[str, str | float]] = []
        for name, value in facts.best.items():
            metric = name.removeprefix(f"{side}_")
            # A spread is no metric.
            if metric != name and not (name in COLUMNS and COLUMNS[name].spread):
                label = f"{metric}, {where}, round {facts.best['round']}"
                found.append({"type": metric, "value": value, "name": label})
        if found:
            yield split, found


def _yaml(value: object, indent: str = "") -> Iterator[str]:
    """Yield the lines of plain data as YAML; a scalar is written as JSON, which YAML contains."""
    if isinstance(value, str | int | float):
        yield indent + json.dumps(value, ensure_ascii=False)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            first, *rest = _yaml(inner, indent + "  ")
            if isinstance(inner, str | int | float):
                yield f"{indent}{key}: {first.lstrip()}"
            else:
                yield from (f"{indent}{key}:", first, *rest)
    elif isinstance(value, Sequence):
        for inner in value:
            first, *rest = _yaml(inner, indent + "  ")
            yield from (f"{indent}- {first.lstrip()}", *rest)


def _introduction(facts: Facts) -> str:
    taught = sum(client.outcomes["accepted"] > 0 for client in facts.clients)
    accepted = facts.total("accepted")
    by = f" by {counted(taught, 'client')}" if taught else ""
    text = f"Trained by federated learning{by}, with Folkmoot: run {_text(facts.run_id)}"
    text += f", {_text(facts.progress)}."
    if accepted is not None:
        text += f" Its {len(facts.rows):,} rounds combined {accepted:,} updates."
    if facts.state != "ended":
        text += "\n\n**The training is not complete, and so is this card.**"
    return text


def _results(facts: Facts, plots: Collection[str]) -> Iterator[str]:
    overall, spread, classes = (
        wording.results(facts),
        wording.spread(facts),
        wording.by_class(facts),
    )
    if overall or spread or classes:
        yield "## Results"
    if overall:
        yield _table(overall)
    if "convergence" in plots:
        yield "![What was measured by round](convergence.png)"
    if "metrics" in plots:
        yield "![The task's own metrics by round](metrics.png)"
    if classes and facts.by_class:
        yield f"### By class\n\nOn the server's test set, after round {facts.by_class.round}."
        yield _table(classes)
        if "confusion" in plots:
            yield "![Confusion matrix](confusion.png)"
    if spread:
        yield "### By client\n\nOn the clients' validation sets; each client counts as one."
        yield _table(spread)
    if "split" in plots:
        about = facts.parts.summary() if facts.parts else "training examples of each client"
        yield f"### Who held what\n\n{_text(about)}.\n\n![Examples of each client](split.png)"


def _limits(facts: Facts) -> Iterator[str]:
    by = next((m for m in ("accuracy", "loss") if f"global_{m}" in facts.best), None)
    if facts.best_is_known and by:
        yield (
            f"The best round was chosen by its {by} on the test set above, so that "
            f"{by} may be a little too good; on other data it was not evaluated."
        )
    known = (
        [
            (accuracy, name)
            for name, accuracy in zip(
                facts.by_class.classes, facts.by_class.accuracies(), strict=True
            )
            if accuracy is not None
        ]
        if facts.by_class
        else []
    )
    if known:
        accuracy, name = min(known)
        yield f"It recognises class {_text(name)} worst: accuracy {accuracy:.4f}."
    if (worst := facts.best.get("client_accuracy_min")) is not None:
        mean = facts.best.get("client_accuracy", worst)
        yield (
            f"It does not serve all clients alike: the lowest accuracy on a client's own data is "
            f"{worst:.4f}, where the mean is {mean:.4f}."
        )
    if facts.total("accepted") == 0 or not facts.done:
        yield "No client's update has gone into it."
    yield (
        "The server read the clients' updates, without secure aggregation or differential "
        "privacy: updates and model may tell something about single training examples."
    )
    for note in facts.notes:
        yield f"About this card: {_text(note)}."


def _usage(facts: Facts) -> Iterator[str]:
    task, model = facts.option("task"), facts.option("model")
    if not (task and model and facts.values):
        return
    name = "best" if facts.best_is_known else "global"
    partial = wording.local(facts)
    strict = ", strict=False" if partial else ""
    yield "## How to load it"
    yield (
        f"`models/{name}.safetensors` of the run directory is the model; `load_task` comes with "
        "Folkmoot." + (" Some tensors stayed at the clients and are not in it." if partial else "")
    )
    yield f"""```python
from safetensors.torch import load_file

from common.tasks import load_task

model = load_task({json.dumps(task)}).build({json.dumps(model)}, {_hyperparameters(facts)})
model.load_state_dict(load_file("{name}.safetensors"){strict})
model.eval()
```"""


def _hyperparameters(facts: Facts) -> str:
    """Return those that a model may be made by, as Python."""
    try:
        found = json.loads(str(facts.options.get("hyperparameters", "{}")))
    except ValueError:
        found = {}
    return repr(found if isinstance(found, dict) else {})


def _table(table: Table) -> str:
    rows = [[None if cell is None else _text(cell) for cell in row] for row in table.rows]
    return markdown_table(table.head, rows).rstrip()


def _text(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", html.escape(text, quote=False))
