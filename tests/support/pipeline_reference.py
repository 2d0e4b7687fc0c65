"""What `transformers.pipeline` gives for each record alone, and the comparison with what a runner gives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from common.json_codec import to_jsonable
from common.records import Json, Outcome
from common.task_params import LOAD_PARAMS
from tests.support.tiny_models import RecordingMonitor
from workers.inference.core.runner import Runner
from workers.inference.tasks.runners import find_runner
from workers.models.load_options import LoadOptions

#: Padding changes the order of additions and so the last digits.
TOLERANCE = 1e-4


def runner_of(task: str, model: Path, **options: Json) -> Runner:
    params = {name: options.pop(name) for name in LOAD_PARAMS if name in options}
    return find_runner(task).load(task, model, "cpu", LoadOptions(**options).with_params(task, params))


def run(task: str, model: Path, records: Sequence[Json], /, **params: Json) -> list[Outcome]:
    return runner_of(task, model).run(records, params, RecordingMonitor())


def pipeline_outputs(task: str, model: Path, records: Sequence[Json], **params: Json) -> list[Json]:
    pipe = transformers.pipeline(task, model=str(model), device="cpu")
    return [_pipeline_output(pipe, record, params) for record in records]


def _pipeline_output(pipe: Any, record: Json, params: Mapping[str, Json]) -> Json:
    if not isinstance(record, dict) or pipe.task == "table-question-answering":
        return pipe(record, **params)
    if "messages" in record:
        return pipe(record["messages"], **params)
    if "text_pair" in record:
        found = pipe(record, **params)  # the pipeline gives a bare object here, and a list for a text
        return found if "top_k" in params else [found]
    own = {name: value for name, value in record.items() if name != "text"}
    return pipe(record["text"], **{**params, **own})


def assert_same_as_pipeline(task: str, model: Path, records: Sequence[Json], **params: Json) -> list[Outcome]:
    """Compare every record's output with the pipeline's own; return the outcomes."""
    outcomes = run(task, model, records, **params)
    assert [outcome.failure for outcome in outcomes] == [None] * len(records)
    for outcome, expected in zip(outcomes, pipeline_outputs(task, model, records, **params), strict=True):
        assert_same(outcome.output, expected)
    return outcomes


def assert_neighbors_change_nothing(runner: Runner, records: Sequence[Json], **params: Json) -> list[Outcome]:
    """Compare what records get together with what each gets alone; return the outcomes."""
    together = runner.run(records, params, RecordingMonitor())
    for record, outcome in zip(records, together, strict=True):
        (single,) = runner.run([record], params, RecordingMonitor())
        assert (outcome.failure, outcome.truncated) == (single.failure, single.truncated)
        assert_same(to_jsonable(outcome.output), to_jsonable(single.output))
    return together


def assert_same(found: Json, expected: Any) -> None:
    """Compare two outputs: numbers to within `TOLERANCE`, anything else exactly."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif expected is None or isinstance(expected, str | int):
        assert found == expected
    else:
        assert type(found) is float
        assert abs(found - float(expected)) <= TOLERANCE  # not pytest.approx: millions of numbers are compared
