"""Plain: the payload is a safetensors file of the base model's schema, and the update's values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.tensors import (
    WINDOW,
    Schema,
    check_finite,
    check_integers,
    check_schema,
    open_mapped,
    schema_of,
    specs,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class PlainUpdate:
    """See `EncodedUpdate`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def window(self, name: str, start: int) -> torch.Tensor:
        """See `EncodedUpdate.window`."""
        return self._tensors[name].view(-1)[start : start + WINDOW]


class Plain:
    """See `Encoding`."""

    def encode(self, update: memoryview) -> memoryview:
        """See `Encoding.encode`."""
        return update

    def validate(self, path: Path, schema: Schema, base: Mapping[str, torch.Tensor]) -> float:
        """See `Encoding.validate`."""
        check_schema(schema_of(path), schema)
        tensors = open_mapped(path)
        norm = check_finite(tensors)
        check_integers(tensors, base)
        return norm

    def open(self, path: Path, schema: Schema) -> PlainUpdate:
        """See `Encoding.open`."""
        tensors = open_mapped(path)
        check_schema(specs(tensors), schema)
        return PlainUpdate(tensors)
