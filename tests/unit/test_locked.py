"""What is installed is what requirements.lock pins, by version and by hash."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.locked import needed

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads(PYPROJECT)["project"]


def versions(text):
    return dict(re.findall(r"(?m)^([\w-]+)==(\S+)", text))


def test_every_pin_has_hashes():
    blocks = re.split(r"(?m)^(?=\w)", LOCK)[1:]
    assert blocks
    for block in blocks:
        assert re.search(r"(?m)^    --hash=sha256:[0-9a-f]{64}", block), block


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_each_extra_is_locked_as_pyproject_toml_asks(extra):
    locked = versions(needed(PYPROJECT, LOCK, extra))
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"].get(extra, [])
    for requirement in map(Requirement, wanted):
        if requirement.name != PROJECT["name"]:
            assert locked[canonicalize_name(requirement.name)] in requirement.specifier


_PYPROJECT = """
[build-system]
requires = []
[project]
name = "mine"
dependencies = ["First-One>=1"]
[project.optional-dependencies]
more = ["mine[much]"]
much = ["second"]
"""
_LOCK = """# Made by hand.
deep==1 ; python_version > "3" \\
    --hash=sha256:0
    # via first-one
first-one==1 \\
    --hash=sha256:1
    # via mine (pyproject.toml)
second==2 \\
    --hash=sha256:2
    # via mine (pyproject.toml)
"""


def test_what_an_extra_needs_is_what_its_packages_need_and_what_folkmoot_needs_without_it():
    assert versions(needed(_PYPROJECT, _LOCK)) == {"deep": "1", "first-one": "1"}
    assert versions(needed(_PYPROJECT, _LOCK, "more")) == versions(_LOCK)


def test_an_unknown_extra_and_a_missing_package_are_errors():
    with pytest.raises(ValueError, match=r"unknown extra: mush \(there are more, much\)"):
        needed(_PYPROJECT, _LOCK, "mush")
    with pytest.raises(ValueError, match=r"lacks second: run \./scripts/lock"):
        needed(_PYPROJECT, _LOCK.partition("second")[0], "much")


@pytest.fixture
def clone(tmp_path):
    """Return a clone that needs one package, `first-one`, and the folder that pip finds it in."""
    root, wheels = tmp_path / "clone", tmp_path / "wheels"
    (root / "scripts").mkdir(parents=True)
    wheels.mkdir()
    for name in ("environment", "install", "locked.py"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    (root / "pyproject.toml").write_text(_PYPROJECT)
    members = {
        "first.py": "",
        "first_one-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: first-one\nVersion: 1\n",
        "first_one-1.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
    }
    lines = []
    wheel = wheels / "first_one-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in members.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            lines.append(f"{name},sha256={digest.decode().rstrip('=')},{len(text)}\n")
            archive.writestr(name, text)
        archive.writestr("first_one-1.dist-info/RECORD", "".join(lines))
    return root, wheel


@pytest.mark.parametrize("same", [True, False])
def test_a_package_with_another_hash_is_not_installed(clone, same):
    root, wheel = clone
    digest = hashlib.sha256(wheel.read_bytes() if same else b"another").hexdigest()
    (root / "requirements.lock").write_text(
        f"first-one==1 \\\n    --hash=sha256:{digest}\n    # via mine (pyproject.toml)\n"
    )
    done = subprocess.run(
        [root / "scripts" / "install"],
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert bool(list(root.glob(".venv/lib/*/site-packages/first.py"))) == same
    if not same:
        assert done.returncode != 0
        assert "DO NOT MATCH" in done.stderr
        assert not (root / ".venv" / "installed").exists()
