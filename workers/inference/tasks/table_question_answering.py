"""Table question answering: the cells of a table that answer a question."""

import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd
from transformers import pipelines as hf

from common.errors import RecordError
from common.records import Json
from common.tasks import TASKS
from workers.inference.tasks.pipeline_task import PipelineParams, PipelineTask, PreparedRecord, RowOutput
from workers.inference.text.collate import take_row
from workers.inference.text.fields import parse_fields
from workers.inference.text.tokenization import check_text


class TableQuestionAnswering(PipelineTask[PipelineParams]):
    """The cells that answer a question about a table; cells of any type are read as text."""

    name = "table-question-answering"
    pipeline_class = hf.TableQuestionAnsweringPipeline
    auto_class = "AutoModelForTableQuestionAnswering"

    def prepare(self, value: Json, params: PipelineParams) -> PreparedRecord:
        """Return the table and the question; rows that do not fit the model are dropped from the end."""
        fields = parse_fields(TASKS[self.name], value)
        table = parse_table(fields["table"])
        pair = {"table": table, "query": check_text(fields["query"], "query")}
        try:
            inputs = dict(self.pipe.preprocess(pair, **params.preprocess))
        except ValueError as error:  # too many columns, or a question that leaves no space for one row
            raise RecordError("too_long", f"The table does not fit the model: {error}.") from error
        rows_seen = int(inputs["token_type_ids"][0, :, 2].max())  # numbered from 1
        return PreparedRecord([inputs], truncated=rows_seen < len(table))

    def _rows(self, outputs: Any, lengths: Sequence[int]) -> list[RowOutput]:
        inputs, scores = outputs["model_inputs"], outputs["outputs"]
        rows = []
        for number, length in enumerate(lengths):
            parts = [take_row(scores["logits"], number, length)]
            if scores.get("logits_aggregation") is not None:
                parts.append(take_row(scores["logits_aggregation"], number))
            taken = {key: take_row(value, number, length) for key, value in inputs.items()}
            rows.append({"model_inputs": taken, "table": outputs["table"][number], "outputs": tuple(parts)})
        return rows


def parse_table(value: Json) -> pd.DataFrame:
    """Return a data frame of texts from an object of columns, or a list of rows that are objects.

    Raises:
        RecordError: `wrong_type`, another shape, or columns of different lengths; `empty_text`, no cells.
    """
    columns = _columns(value)
    if len({len(column) for column in columns.values()}) > 1:
        raise RecordError("wrong_type", "The columns of the table must have the same length.")
    if not any(columns.values()):
        raise RecordError("empty_text", "The table has no cells.")
    texts = {str(name): ["" if cell is None else str(cell) for cell in column] for name, column in columns.items()}
    return pd.DataFrame(texts)


def _columns(value: Json) -> dict[str, list[Json]]:
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        return value
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise RecordError(
            "wrong_type",
            'table must be an object of columns {"city": ["Seoul"]} or a list of rows [{"city": "Seoul"}].',
        )
    names = dict.fromkeys(itertools.chain.from_iterable(value))
    return {name: [row.get(name) for row in value] for name in names}
