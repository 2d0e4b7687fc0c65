"""OpenAI batch output: a line with the response or the error of each request."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from common.errors import PayloadError, ResultsLost, UsageError
from common.jobs import JobSpec
from common.json_codec import to_json
from common.records import Failure, Json
from common.results import NOT_RUN, ResultLayout, ResultRow
from producer.openai.response_bodies import response_body
from producer.outputs.targets import OutputFile, check_responses
from producer.outputs.text import JsonLinesWriter

#: Error codes that are not the request's fault.
_SERVER_FAULTS = frozenset(
    {
        "missing_library", "no_memory", "out_of_memory", "output_too_large", "results_lost", "runner_error", "timeout",
        "worker_died",
    }
)  # fmt: skip
#: By task: parameters whose outputs have no form in a response, and why.
_WITHOUT_FORM: Mapping[str, tuple[tuple[str, ...], str]] = {
    "embedding": (("precision", "split_tokens"), "a response has one vector of floats"),
    "rerank": (
        ("return_all_scores", "return_documents", "top_k"),
        "a response has one score for each document, and top_n of a request keeps the best ones",
    ),
}


def response_line(spec: JobSpec, number: int, row: ResultRow) -> str:
    """Return the line of record `number` of a job, without a line end; it is the same every time."""
    name = hashlib.sha256(f"{spec.id}:{number}".encode()).hexdigest()[:24]
    line: dict[str, Json] = {"id": f"batch_req_{name}", "custom_id": row.id, "response": None, "error": None}
    if row.error is None:
        line["response"] = _response(200, name, _body(row, spec, name))
    else:
        line["error"] = row.error.as_dict()
        if row.error is not NOT_RUN:
            status = 500 if row.error.code in _SERVER_FAULTS else 400
            line["response"] = _response(status, name, {"error": _error(row.error, status)})
    return to_json(line)


class BatchWriter(JsonLinesWriter):
    """One response a line."""

    def __init__(self, path: Path, spec: JobSpec) -> None:
        """Open the file for the outcomes of a job.

        Raises:
            UsageError: the name does not end in .jsonl or .jsonl.gz.
        """
        super().__init__(path, ResultLayout.of(spec))
        check_responses(OutputFile(path))
        self._spec = spec
        self._written = 0

    def _write(self, row: ResultRow) -> None:
        self._stream.write(response_line(self._spec, self._written, row).encode() + b"\n")
        self._written += 1


def check_batch_options(options: Mapping[str, bool]) -> None:
    """Check that no option is given that a batch file makes meaningless.

    Args:
        options: the options of columns and quoting, and whether each is given.

    Raises:
        UsageError: one is.
    """
    for option, is_given in options.items():
        if is_given:
            raise UsageError(f"{option} cannot be combined with --format openai: requests have fixed fields.")


def check_batch_params(spec: JobSpec) -> None:
    """Check that responses have a form for the outputs of a job with its parameters.

    Raises:
        UsageError: they have not.
    """
    names, reason = _WITHOUT_FORM.get(spec.task, ((), ""))
    for name in names:
        if name in spec.params:
            raise UsageError(f"-p {name} cannot be combined with --format openai: {reason}.")


def _body(row: ResultRow, spec: JobSpec, name: str) -> Json:
    if row.input is None:
        raise ResultsLost(f"the request {to_json(row.id)} of job {spec.id} is gone, so its response cannot be written.")
    try:
        return response_body(row, spec, name)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
    ) as error:  # untrusted, as everything from Redis
        raise PayloadError(f"the outcome of {to_json(row.id)} is not an answer to its request") from error


def _response(status: int, name: str, body: Json) -> dict[str, Json]:
    return {"status_code": status, "request_id": f"req_{name}", "body": body}


def _error(failure: Failure, status: int) -> dict[str, Json]:
    kind = "server_error" if status == 500 else "invalid_request_error"
    return {"message": failure.message, "type": kind, "param": None, "code": failure.code}
