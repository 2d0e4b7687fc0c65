"""Requests for the text of a recording: `/v1/audio/transcriptions`, as vLLM's `run-batch` takes them."""

from collections.abc import Mapping

from common.params import TEXT, number
from common.records import Json
from producer.openai.data_urls import check_data_url
from producer.openai.errors import bad_request
from producer.openai.fields import check_known, checked_param

_FORMATS = ("json", "text")


def read_transcription(body: Mapping[str, Json]) -> dict[str, Json]:
    """Return the input of a record with a recording.

    Raises:
        RecordError: `bad_request`.
    """
    check_known(body, frozenset({"model", "file_url", "language", "response_format", "temperature"}))
    form = body.get("response_format") or "json"
    if form not in _FORMATS:
        raise bad_request(f"response_format must be one of {', '.join(_FORMATS)}, found {form!r:.100}")
    options: dict[str, Json] = {}
    if body.get("language") is not None:
        options["language"] = checked_param(body, "language", TEXT)
    if body.get("temperature") is not None and checked_param(body, "temperature", number(0, 1)) > 0:
        options |= {"do_sample": True, "temperature": float(body["temperature"])}
    return {"file": check_data_url("file_url", body.get("file_url")), "response_format": form, "options": options}
