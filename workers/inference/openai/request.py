"""A request of a batch file, as the producer writes it into the input of a record; untrusted."""

from typing import Annotated, Any

import msgspec

from common.errors import RecordError
from common.output_constraints import Constraint
from common.records import Json
from common.task_params import MAX_CHOICES


class OpenAIRequest(msgspec.Struct):
    """What the worker needs of a request."""

    options: dict[str, Json]  #: parameters of the runner
    task: str = ""  #: that answers it; empty: that of the job
    defaults: dict[str, Json] = {}  #: the API's own, which parameters of the job override
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] = 1  #: choices for each prompt
    constraint: Constraint | None = None  #: what choices must be
    function: str | None = None  #: choices are the arguments of this function
    calls: bool = False  #: choices are lists of calls of functions
    echo: bool = False  #: whether choices repeat the prompt
    messages: Any = None  #: the chat, checked by the runner
    prompts: list[str] = []
    texts: list[str] = []
    rankings: list[dict[str, Json]] = []  #: each a query and documents, checked by the runner
    file: str = ""  #: a recording, as a data: URL


def parse_request(value: Json) -> OpenAIRequest:
    """Return the request in the input of a record.

    Raises:
        RecordError: `wrong_type`.
    """
    try:
        return msgspec.convert(value, OpenAIRequest)
    except msgspec.ValidationError as error:
        raise RecordError("wrong_type", f"Not a valid request: {error}.") from error
