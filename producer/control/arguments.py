"""Arguments of the tasks: JSON of other programs, checked before anything is done with it."""

import json
from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec

from common.errors import UsageError
from common.jobs import JOB_ID
from common.records import Json
from common.suggestions import did_you_mean
from common.validation import checked
from producer.submit.options import SubmitKeywords


class CallbackSignature(msgspec.Struct):
    """A signature of Celery in JSON."""

    task: str
    args: list[Json] = []
    kwargs: dict[str, Json] = {}
    options: dict[str, Json] = {}


#: Characters of the records in one message; more of them belong into a file.
MAX_RECORDS_LENGTH = 64 * 1024 * 1024
#: Keyword of `hugqueue.submit` -> its type. JSON has no paths and no job handles, and its parameters are an object.
_TYPES: Mapping[str, Any] = {
    **get_type_hints(SubmitKeywords),
    "after": str | list[str],
    "output": str | None,
    "params": dict[str, Json] | None,
    "callback": CallbackSignature | None,
}


def check_submit(records: Json, options: Mapping[str, Json]) -> None:
    """Check the types of the arguments of `hugqueue.submit`; what they may be, the submit itself checks.

    Raises:
        UsageError: An argument is unknown, missing, or of another type, or the records are too long.
    """
    for name, value in options.items():
        if name not in _TYPES:
            known = ["records", *_TYPES]
            raise UsageError(f"hugqueue.submit has no argument {name!r:.80}. {did_you_mean(name, known)}")
        try:
            checked(value, _TYPES[name], name)
        except ValueError as error:
            raise UsageError(f"hugqueue.submit: {error}.") from error
    if not isinstance(records, str | list | dict) or not records:
        raise UsageError(
            "hugqueue.submit: records must be a list of records, or the path or URL of a file with them, found "
            f"{records!r:.80}."
        )
    size = 0 if isinstance(records, str) else len(json.dumps(records, ensure_ascii=False))
    if size > MAX_RECORDS_LENGTH:
        raise UsageError(
            f"hugqueue.submit: the records are longer than {MAX_RECORDS_LENGTH:,} characters. Write them to a file "
            "under HUGQUEUE_SHARED, and pass its path or URL."
        )


def check_job(job: Json) -> str:
    """Return the id of a job, which may be that of a description as `hugqueue.wait` returns it.

    Raises:
        UsageError: It is something else.
    """
    found = job.get("id") if isinstance(job, dict) else job
    if not isinstance(found, str) or not JOB_ID.match(found):
        raise UsageError(f"job: expected the id of a job, twelve hexadecimal digits, found {found!r:.80}.")
    return found
