"""How an update is laid out in the bytes that travel and lie on the disk.

An encoding is one module here. The client encodes between training and pushing; the server checks
a payload when it has come, and reads it window by window when it is folded: nothing is expanded on
the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from common.tensors import Schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class EncodedUpdate(Protocol):
    """An update's payload on the disk, opened."""

    def window(self, name: str, start: int) -> torch.Tensor:
        """Return values of a tensor, flat: at most `common.tensors.WINDOW`, of the model's dtype.

        Args:
            name: of the tensor.
            start: the first value.
        """
        ...


class Encoding(Protocol):
    """One way to lay out an update."""

    def encode(self, update: memoryview) -> memoryview:
        """Return the payload of an update.

        Args:
            update: the bytes of a safetensors file with the schema of the base model; they may
                be used for the payload.
        """
        ...

    def validate(self, path: Path, schema: Schema, base: Mapping[str, torch.Tensor]) -> float:
        """Check a payload, and return the L2 norm of the update's floating-point values.

        Args:
            path: the payload's file.
            schema: of the base model.
            base: the base model's integer tensors.

        Raises:
            TensorError: it is damaged, of another schema, not finite, or an integer of the base
                plus the update's overflows its dtype.
        """
        ...

    def open(self, path: Path, schema: Schema) -> EncodedUpdate:
        """Return a payload for reading; the file is mapped.

        Raises:
            TensorError: it is damaged, or of another schema.
        """
        ...
