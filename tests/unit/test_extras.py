"""What an extra brings is asked for by one line that says how to install it."""

import pytest

from common.errors import InputError
from common.extras import require


@pytest.mark.parametrize("missing", ["nobody_has_this", "nobody_has.this.one", "json.nobody.has"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(missing):
    with pytest.raises(InputError) as error:
        require("onnx", "--format onnx", "json", missing)
    assert str(error.value) == ('--format onnx needs the extra "onnx": ./scripts/install onnx')


def test_what_is_installed_is_not_complained_about():
    require("onnx", "--format onnx", "json", "email.mime.text")
