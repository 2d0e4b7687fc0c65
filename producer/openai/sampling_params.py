"""Parameters of a request as options of the runner that writes text; what cannot be followed is refused.

A parameter that would change the answer and is not known here fails its line: an answer that leaves it out would be
taken for one that heeds it.
"""

from collections.abc import Mapping
from typing import Any

from common.errors import RecordError
from common.records import Json

#: Of no consequence for the text.
IGNORED = frozenset(
    {
        "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
        "service_tier", "store", "stream_options", "user",
    }
)  # fmt: skip
#: What the API does where a request says nothing; the job's own `-p` wins over it.
DEFAULTS: Mapping[str, Json] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
#: How long a completion is where neither request nor job says; of a chat, as long as the runner has it.
COMPLETION_TOKENS = 16

#: Answers to one prompt, as the API bounds them.
MAX_ANSWERS = 128

#: Names that the runner has too, and the bounds of their values.
_NUMBERS = {"top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "repetition_penalty": (0.01, 100.0)}
_LENGTHS = {"max_completion_tokens": "max_new_tokens", "max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
#: Values at which what is not supported does nothing.
_NOOP_VALUES: Mapping[str, tuple[Json, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "stream": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
KNOWN = frozenset({"temperature", "top_k", "seed", "stop", "n", *_NUMBERS, *_LENGTHS})


def check_known(body: Mapping[str, Json], known: frozenset[str]) -> None:
    """Check that the body asks for nothing that would be left out.

    Raises:
        RecordError: `bad_request`.
    """
    for name, value in body.items():
        if name in known or name in IGNORED or value is None:
            continue
        if name not in _NOOP_VALUES:
            raise _bad(f"unknown parameter {name!r}; known are {', '.join(sorted(known))}")
        if not any(value == noop and isinstance(value, bool) == isinstance(noop, bool) for noop in _NOOP_VALUES[name]):
            raise _bad(f"{name} is not supported")


def options_of(body: Mapping[str, Json]) -> dict[str, Json]:
    """Return the runner's options that the body asks for.

    Raises:
        RecordError: `bad_request`, a value is not what the API takes.
    """
    options: dict[str, Json] = {}
    for name, (minimum, maximum) in _NUMBERS.items():
        if body.get(name) is not None:
            options[name] = _number(body, name, minimum, maximum)
    for name, option in _LENGTHS.items():
        if body.get(name) is not None and option not in options:
            options[option] = integer(body, name, 1 if option == "max_new_tokens" else 0)
    if body.get("seed") is not None:
        options["seed"] = integer(body, "seed", -(2**63))
    if body.get("top_k") is not None:
        options["top_k"] = max(0, integer(body, "top_k", -1))  # -1 is vLLM's word for all
    return options | _temperature(body) | _stop_sequences(body)


def set_answer_count(body: Mapping[str, Json], options: dict[str, Json]) -> int:
    """Return how many answers are wanted, and have `options` ask for them unless all would be alike."""
    wanted = 1 if body.get("n") is None else integer(body, "n", 1)
    if wanted > MAX_ANSWERS:
        raise _bad(f"n must be at most {MAX_ANSWERS}, found {wanted}")
    if wanted > 1 and options.get("do_sample") is not False:
        options["num_return_sequences"] = wanted
    return wanted


def integer(body: Mapping[str, Json], name: str, minimum: int) -> int:
    """Return a whole number of the body.

    Raises:
        RecordError: `bad_request`, it is none, or less than `least`.
    """
    value = body[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise _bad(f"{name} must be a whole number of at least {minimum}, found {value!r}")
    return value


def _number(body: Mapping[str, Json], name: str, minimum: float, maximum: float) -> Any:
    value = body[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise _bad(f"{name} must be a number from {minimum:g} to {maximum:g}, found {value!r}")
    return value


def _temperature(body: Mapping[str, Json]) -> dict[str, Json]:
    if body.get("temperature") is None:
        return {}
    temperature = _number(body, "temperature", 0.0, 2.0)
    return {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}


def _stop_sequences(body: Mapping[str, Json]) -> dict[str, Json]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if not stops:
        return {}
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise _bad("stop must be a text, or a list of texts")
    return {"stop_sequence": stops}


def _bad(what: str) -> RecordError:
    return RecordError("bad_request", what)
