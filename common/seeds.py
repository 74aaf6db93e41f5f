"""Independent seeds from one run seed, so that no random state is ever stored or shared."""

import hashlib


def derive_seed(seed: int, *labels: str | int) -> int:
    """Return a seed in [0, 2**63) for what `labels` name, e.g. ("train", round, client_id).

    The first 8 bytes, big-endian and without the top bit, of SHA-256 over the seed and
    the labels, each as text and ended by a zero byte.

    >>> derive_seed(0, "train", 1, "client-3") == derive_seed(0, "train", 1, "client-3")
    True
    """
    digest = hashlib.sha256()
    for label in (seed, *labels):
        digest.update(str(label).encode() + b"\0")
    return int.from_bytes(digest.digest()[:8], "big") >> 1
