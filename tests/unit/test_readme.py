"""The README holds what is there: its options are the flags, its task is short."""

import re
from pathlib import Path

from client.options import ClientOptions
from client.options import SecurityOptions as ClientSecurity
from server.options import ServerOptions

README = (Path(__file__).parents[2] / "README.md").read_text()


def _flags(names):
    return {"--" + name.replace("_", "-") for name in names}


def test_the_table_of_options_holds_every_flag_and_no_other():
    table = README.split("## Options")[1].split("\n## ")[0]
    server, client = table.split("**Client**")
    assert set(re.findall(r"`(--[a-z0-9-]+)", server)) == _flags(ServerOptions().flat())
    options = vars(ClientOptions()) | vars(ClientSecurity())
    assert set(re.findall(r"`(--[a-z0-9-]+)", client)) == _flags(options.keys() - {"security"})


def test_the_own_task_has_at_most_25_lines():
    block = re.search(r"```python\n(# moons.py.*?)```", README, re.DOTALL).group(1)
    assert len(block.splitlines()) <= 25
