"""Rows of Arrow tables as own columns of records: references, so that no value is converted before it must be."""

import base64
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from common.inputs.arrow_values import json_type, json_values, replace_undecodable, row_sizes
from common.json_codec import as_text
from common.own_columns import Keep
from common.records import Json


class ArrowRows:
    """Consecutive rows of a table."""

    def __init__(self, batch: Any, types: Mapping[str, Any]) -> None:
        """Hold a batch.

        Args:
            batch: of the kept columns.
            types: of the same columns in the source; a batch may hold texts as dictionaries.
        """
        self.batch = batch
        self.types = types

    @cached_property
    def row_bytes(self) -> int:
        """The approximate size of a row, with texts that a batch holds once as often as rows have them."""
        return int(sum(row_sizes(column).sum() for column in self.batch.columns)) // max(1, len(self.batch))

    @cached_property
    def json(self) -> list[dict[str, Json]]:
        """The rows as JSON values: bytes in base64, times and decimals as text."""
        names = self.batch.schema.names
        columns = [json_cells(self.batch.column(name)) for name in names]
        return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


@dataclass(frozen=True, slots=True)
class ArrowRow:
    """One of them."""

    rows: ArrowRows
    number: int  #: from 0

    def as_dict(self) -> Mapping[str, Json]:
        """Return its cells as JSON values."""
        return self.rows.json[self.number]

    @property
    def types(self) -> Mapping[str, Any]:
        """The columns of its table and their Arrow types."""
        return self.rows.types

    @property
    def bytes(self) -> int:
        """Its approximate size."""
        return self.rows.row_bytes


def kept_rows(batch: Any, keep: Keep, schema: Any, *, files: Container[str] = ()) -> ArrowRows | None:
    """Return the kept columns of a batch, None if there are none.

    Args:
        batch: with these columns and others.
        keep: which.
        schema: of the source, whose types count.
        files: columns that hold files, which become their paths: results never repeat images and audio.
    """
    columns, types = {}, {}
    for name in keep.chosen(batch.schema.names):
        column, kind = batch.column(name), schema.field(name).type
        if name in files:
            if not pa.types.is_struct(kind):
                continue
            import pyarrow.compute as pc  # slow to load, and only images and audio need it

            column, kind = pc.struct_field(column, "path"), kind.field("path").type
        if not is_plain(plain_type(kind)):  # a struct without fields, or an interval: Parquet cannot hold it
            column, kind = pa.array(map(as_text, json_cells(column)), pa.string()), pa.string()
        columns[name], types[name] = column, kind
    return ArrowRows(pa.RecordBatch.from_pydict(columns), types) if columns else None


def is_file_column(kind: Any) -> bool:
    """Whether a column holds files: bytes, or what `datasets` writes for its Image and Audio features.

    https://huggingface.co/docs/datasets/about_dataset_features
    """
    if pa.types.is_struct(kind):
        return {field.name for field in kind} == {"bytes", "path"}
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def json_cells(column: Any) -> list[Json]:
    """Return the cells as JSON values: bytes in base64, and text that is not UTF-8 as a replacement character."""
    return [replace_undecodable(value) for value in json_values(column, lambda data: base64.b64encode(data).decode())]


def plain_type(kind: Any) -> Any:
    """Return a type with the same values whose arrays take as much memory as their values.

    Dictionaries, nulls and views can stand for any number of values in a few bytes. A type that has no such form, such
    as an interval, is returned as it is.
    """
    return json_type(kind, _plain_leaf, decode=True)


def _plain_leaf(kind: Any) -> Any:
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_null(kind):
        return pa.bool_()
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def is_plain(kind: Any) -> bool:
    """Whether arrays of a type take as much memory as their values."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(is_plain(field.type) for field in kind)
    if pa.types.is_map(kind):
        return is_plain(kind.key_type) and is_plain(kind.item_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return is_plain(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size > 0 and is_plain(kind.value_type)
    return _is_plain_leaf(kind)


def _is_plain_leaf(kind: Any) -> bool:
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_null(kind) or pa.types.is_interval(kind):
        return False
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    fixed = (pa.types.is_primitive, pa.types.is_fixed_size_binary, pa.types.is_decimal)
    return any(test(kind) for test in (*texts, *fixed))
