"""The report as one HTML file that needs nothing around it: no script, no other file, no network.

What it says comes from `wording`; everything is escaped by the template's engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.reporting import wording
from scripts.reporting.facts import Facts

_TEMPLATE = "page.html"


def render(facts: Facts, plots: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        facts: what it tells.
        plots: SVG elements by their names.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        facts=facts,
        plots=plots,
        title=wording.title(facts),
        headline=wording.headline(facts),
        setup=wording.setup(facts),
        results=wording.results(facts),
        spread=wording.spread(facts),
        by_class=wording.by_class(facts),
        rounds=wording.rounds(facts),
        clients=wording.clients(facts),
    )
