"""The options of a submit are declared once; the keywords of the client must be the same."""

import dataclasses
from typing import Any, get_type_hints

import pytest

from common.errors import UsageError
from producer.submit.options import SubmitKeywords, SubmitOptions, job_names


def test_the_keywords_of_the_client_are_the_options() -> None:
    options = {field.name for field in dataclasses.fields(SubmitOptions)}
    assert SubmitKeywords.__annotations__.keys() == options - {"csv_safe", "public", "wait"}
    types = get_type_hints(SubmitOptions)
    assert all(kind == types[name] for name, kind in get_type_hints(SubmitKeywords).items())


@pytest.mark.parametrize("wrong", [None, 3, ["a", None], [["a"]]])
def test_jobs_to_wait_for_are_ids_or_handles(wrong: Any) -> None:
    with pytest.raises(UsageError, match="after: expected ids of jobs or job handles, found"):
        job_names(wrong)
