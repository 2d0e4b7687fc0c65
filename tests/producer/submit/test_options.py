"""The options of a submit are declared once; the keywords of the client must be the same."""

import dataclasses
from typing import get_type_hints

from producer.submit.options import SubmitKeywords, SubmitOptions


def test_the_keywords_of_the_client_are_the_options() -> None:
    options = {field.name for field in dataclasses.fields(SubmitOptions)}
    assert SubmitKeywords.__annotations__.keys() == options - {"csv_safe", "public", "wait"}
    types = get_type_hints(SubmitOptions)
    assert all(kind == types[name] for name, kind in get_type_hints(SubmitKeywords).items())
