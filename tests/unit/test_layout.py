"""The names of a run directory's files stand in layout.py alone, which anything may import."""

import ast
import re
from pathlib import Path

from server.storage import layout

ROOT = Path(__file__).parents[2]
LAYOUT = ROOT / "server" / "storage" / "layout.py"
NAMES = {value for name, value in vars(layout).items() if name.isupper()}
FILES = re.compile("|".join(rf"(?<![\w-]){re.escape(name)}(?!\w)" for name in NAMES if "." in name))
MODEL = re.compile(rf"(?:{layout.LAST}|{layout.BEST})\\?\.(?:safetensors|pth|json)")


def spelled(path):
    """Yield what a module's strings spell of a run directory; what docstrings tell is no name."""
    tree = ast.parse(path.read_text())
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield from (found[0] for found in FILES.finditer(node.value))
            yield from (found[0] for found in MODEL.finditer(node.value))
        # A folder's name is a word, too, but not in a path.
        match node:
            case ast.BinOp(op=ast.Div(), right=ast.Constant(value)) if value in NAMES:
                yield value


def test_no_other_module_spells_a_file_of_the_run_directory():
    modules = [path for room in ("server", "scripts") for path in (ROOT / room).rglob("*.py")]
    found = {str(p.relative_to(ROOT)): names for p in modules if (names := [*spelled(p)])}
    assert len(found.pop(str(LAYOUT.relative_to(ROOT)))) >= 14
    assert found == {}


def test_it_imports_nothing_but_paths():
    tree = ast.parse(LAYOUT.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["from pathlib import Path"]
