"""Which tensors of a model stay with their client: those whose names a pattern matches.

FedBN (Li et al. 2021, arXiv 2102.07623) keeps batch normalisation so. Knows only names.
"""

import re
from collections.abc import Iterable

from common.errors import InputError


def local_names(names: Iterable[str], pattern: str) -> frozenset[str]:
    """Return the names that the regular expression matches, anywhere in them; "" matches none.

    Raises:
        InputError: it is no regular expression.

    >>> sorted(local_names(["conv.weight", "bn.weight", "bn.bias"], "^bn"))
    ['bn.bias', 'bn.weight']
    """
    try:
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(
            f"--local-layers: {pattern!r} is no regular expression ({error}); e.g. 'bn|norm'"
        ) from error
    return frozenset(name for name in names if pattern and expression.search(name))
