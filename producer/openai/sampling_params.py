"""Sampling parameters of completions and chats as options of the runner."""

from collections.abc import Mapping

from common.params import ParamType, integer, number
from common.records import Json
from common.task_params import MAX_CHOICES, TASK_PARAMS
from producer.openai.errors import bad_request
from producer.openai.fields import checked_param

#: The API's defaults; the job's own `-p` overrides them.
DEFAULTS: Mapping[str, Json] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
#: Default length of a completion; that of a chat is the runner's.
COMPLETION_TOKENS = 16

#: By name: the runner's option and its type. Of two names for one option, the first wins.
_PARAMS: Mapping[str, tuple[str, ParamType]] = {
    "temperature": ("temperature", number(0, 2)),
    "top_p": ("top_p", number(0, 1)),
    "min_p": ("min_p", number(0, 1)),
    "repetition_penalty": ("repetition_penalty", number(0.01, 100)),
    "max_completion_tokens": ("max_new_tokens", integer(1)),
    "max_tokens": ("max_new_tokens", integer(1)),
    "min_tokens": ("min_new_tokens", integer(0)),
    "seed": ("seed", integer(-(2**63))),
    "top_k": ("top_k", integer(-1)),
}
KNOWN = frozenset({"stop", "n", *_PARAMS})


def options_of(body: Mapping[str, Json]) -> dict[str, Json]:
    """Return the runner's options for a request.

    Raises:
        RecordError: `bad_request`, the API does not allow a value.
    """
    options: dict[str, Json] = {}
    for name, (option, kind) in _PARAMS.items():
        if body.get(name) is not None and option not in options:
            options[option] = checked_param(body, name, kind)
    if "top_k" in options:
        options["top_k"] = max(0, options["top_k"])  # -1 is vLLM's value for all
    if "temperature" in options:
        options["do_sample"] = options["temperature"] > 0
        if not options["do_sample"]:
            del options["temperature"]
    return options | _stop_sequences(body)


def set_answer_count(body: Mapping[str, Json], options: dict[str, Json]) -> int:
    """Return the number of answers, and add it to `options` unless all answers would be the same."""
    count: int = 1 if body.get("n") is None else checked_param(body, "n", integer(1))
    if count > MAX_CHOICES:
        raise bad_request(f"n must be at most {MAX_CHOICES}, found {count}")
    if count > 1 and options.get("do_sample") is not False:
        options["num_return_sequences"] = count
    return count


def logprobs_of_chat(body: Mapping[str, Json]) -> dict[str, Json]:
    """Return the runner's option for the log-probabilities of a chat, if it asks for any.

    Raises:
        RecordError: `bad_request`.
    """
    asked, top = body.get("logprobs"), body.get("top_logprobs")
    if not isinstance(asked, bool | None):
        raise bad_request(f"logprobs must be true or false, found {asked!r:.200}")
    if top and not asked:
        raise bad_request("top_logprobs needs logprobs to be true")
    return {"logprobs": _count(body, "top_logprobs") if top is not None else 0} if asked else {}


def logprobs_of_completion(body: Mapping[str, Json]) -> dict[str, Json]:
    """Return the runner's option for the log-probabilities of a completion, if it asks for any.

    Raises:
        RecordError: `bad_request`.
    """
    if body.get("logprobs") is None:
        return {}
    if body.get("echo"):
        raise bad_request("logprobs cannot be combined with echo: those of the prompt are not computed")
    return {"logprobs": _count(body, "logprobs")}


def _count(body: Mapping[str, Json], name: str) -> Json:
    return checked_param(body, name, TASK_PARAMS["text-generation"]["logprobs"])


def _stop_sequences(body: Mapping[str, Json]) -> dict[str, Json]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if not stops:
        return {}
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise bad_request("stop must be a text, or a list of texts")
    return {"stop_sequence": stops}
