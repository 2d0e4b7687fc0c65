"""Fields of the body of a request, checked by their type."""

from collections.abc import Mapping

from common.params import ParamType
from common.records import Json
from producer.openai.errors import bad_request


def checked_param(body: Mapping[str, Json], name: str, kind: ParamType) -> Json:
    """Return a parameter of a request.

    Raises:
        RecordError: `bad_request`, it has another type.
    """
    if not kind.accepts(body[name]):
        raise bad_request(f"{name} must be {kind.description}, found {body[name]!r:.200}")
    return body[name]


def texts_of(body: Mapping[str, Json], name: str) -> list[str]:
    """Return the texts of a field that holds one or several.

    Raises:
        RecordError: `bad_request`, it holds none, or something else.
    """
    value = body.get(name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise bad_request(f"{name} must be a text, or a list of texts (token ids are not supported)")
    return texts
