"""`./scripts/reproduce next-word`: held-out perplexity by round, beside unigrams and bigrams.

The n-grams are counted from all training text in one place (scripts/ngrams.py); the model is
trained by ten clients, each with its own part of it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.ngrams import perplexities
from scripts.reproduction.running import train
from scripts.results import Panel, markdown_table, plot


def run(
    data_dir: Path,
    output: Path,
    rounds: int = 30,
    task: str = "next_word",
    flags: Sequence[object] = (),
) -> None:
    """Train, or go on where the output folder stands, and write table and picture."""
    output.mkdir(parents=True, exist_ok=True)
    given = [
        *("--task", task, "--rounds", rounds, "--data-dir", data_dir, "--num-partitions", 10),
        *("--min-clients", 10, "--keep-rounds", 1, *flags),
    ]
    rows = [row for row in train("next word", output / "run", given) if row["global_loss"]]
    by_round = [(row["round"], math.exp(row["global_loss"])) for row in rows]
    baselines = perplexities(output / "run", data_dir)
    baselines.pop("model")
    text = f"""# The next word

{task}, ten clients, all of them in each round. Perplexity on held-out text, the last fifth of each
client's: the smaller, the better. One seed, 0.

{_table(by_round, baselines)}
![Perplexity by round](next_word.png)
"""
    (output / "next_word.md").write_text(text, encoding="utf-8")
    panel = Panel(
        title="The next word",
        lines={"federated": by_round},
        y_label="held-out perplexity",
        levels=baselines,
    )
    plot(output / "next_word.png", [panel])
    print("\n" + _table(by_round, baselines))
    print(f"Table:   {output / 'next_word.md'}\nPicture: {output / 'next_word.png'}")


def _table(by_round: Sequence[tuple[int, float]], baselines: Mapping[str, float]) -> str:
    shown = [point for point in by_round if point[0] % 5 == 0 or point == by_round[-1]]
    rows = [(f"federated, round {number}", f"{value:.1f}") for number, value in shown]
    rows += [(f"{name}, centralised", f"{value:.1f}") for name, value in baselines.items()]
    return markdown_table(("model", "perplexity"), rows)
