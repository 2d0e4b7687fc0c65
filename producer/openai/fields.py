"""Fields of the body of a request: which are known, and of what type they must be.

A parameter that would change the response and is not supported fails its request: a response that ignores it would look
like one that follows it.
"""

from collections.abc import Mapping

from common.params import ParamType
from common.records import Json
from producer.openai.errors import bad_request

#: Parameters without effect on the response.
_IGNORED = frozenset(
    {
        "metadata", "priority", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "safety_identifier", "service_tier", "store", "stream_options", "user",
    }
)  # fmt: skip
#: Unsupported parameters, and the values with which they have no effect.
_NOOP_VALUES: Mapping[str, tuple[Json, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "parallel_tool_calls": (True, False),
    "stream": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}


def check_known(body: Mapping[str, Json], known: frozenset[str]) -> None:
    """Check that a request has no parameter that would be ignored.

    Raises:
        RecordError: `bad_request`.
    """
    for name, value in body.items():
        if name in known or name in _IGNORED or value is None:
            continue
        if name not in _NOOP_VALUES:
            raise bad_request(f"unknown parameter {name!r}; known are {', '.join(sorted(known))}")
        if not any(value == noop and isinstance(value, bool) == isinstance(noop, bool) for noop in _NOOP_VALUES[name]):
            raise bad_request(f"{name} is not supported")


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
        raise bad_request(f"{name} must be a text, or a list of texts, found {value!r:.100}")
    return texts
