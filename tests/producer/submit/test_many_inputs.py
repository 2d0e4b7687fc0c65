"""A job of very many inputs: what workers read for each of its chunks stays small."""

import json
from pathlib import Path

import pytest

from common.jobs import MAX_INPUT_NAMES, JobSpec, truncate_names
from producer.submit.options import SubmitOptions
from producer.submit.plan import make_plan


@pytest.mark.parametrize("format_", ["txt", "openai"])
def test_a_job_of_thousands_of_files_is_small_and_reads_them_all(tmp_path: Path, format_: str) -> None:
    request = {"custom_id": "r", "method": "POST", "url": "/v1/embeddings", "body": {"model": "a/b", "input": "text"}}
    files = [tmp_path / f"part-{number:05}.txt" for number in range(2000)]
    for path in files:
        path.write_text(json.dumps(request))
    task = None if format_ == "openai" else "fill-mask"
    plan = make_plan([str(path) for path in files], SubmitOptions(task=task, format=format_))
    encoded = plan.spec.encode()
    assert len(encoded) < 2 * MAX_INPUT_NAMES
    assert JobSpec.decode(encoded).inputs[-1].startswith("and 1,9")
    assert sum(1 for _ in plan.records()) == len(files)


def test_a_few_inputs_are_all_named() -> None:
    names = ("a" * 5000, "b" * 5000, "c")
    assert truncate_names(names[2:]) == ("c",)
    assert truncate_names(names) == (names[0], "and 2 more")
