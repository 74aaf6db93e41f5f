"""What an extra brings is asked for by one line that says how to install it."""

import pytest

from common.errors import InputError
from common.extras import require


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    with pytest.raises(InputError) as error:
        require("onnx", "--format onnx", "json", "a_module_that_nobody_has")
    assert str(error.value) == (
        '--format onnx needs the extra "onnx": '
        ".venv/bin/pip install -c constraints.txt -e '.[onnx]'"
    )


def test_what_is_installed_is_not_complained_about():
    require("onnx", "--format onnx", "json", "email")
