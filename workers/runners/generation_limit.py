"""How many tokens a job may have generated for one record: the worker's limit, held against the job's parameters.

Looked at before any model is loaded, so that a job which asks for too much fails at once. What a model's own
configuration asks for is bounded where models are loaded (`workers.runners.loading`).
"""

from collections.abc import Mapping

from common.errors import ModelError
from common.values import Json

#: Tasks for which `max_length` is that of the new text; elsewhere it says where the input is cut.
_TASKS = frozenset({"text-generation", "text2text-generation", "summarization", "translation"})
_LENGTHS = ("max_new_tokens", "min_new_tokens", "max_length", "min_length")
_COPIES = ("num_beams", "num_return_sequences")
#: What counts where a job names no length: the runners' own default.
_UNNAMED = 256


def check_generation(task: str, params: Mapping[str, Json], most: int) -> None:
    """Check what a job asks for: its longest length, times the larger of its numbers of beams and of sequences.

    Values of the wrong type are left to the runner, which knows its parameters.

    Raises:
        ModelError: `too_many_tokens`.
    """
    lengths = _LENGTHS if task.partition("_")[0] in _TASKS else _LENGTHS[:2]
    length = max(_number(params, name) for name in lengths)
    copies = max(_number(params, name) for name in _COPIES)
    if not length and not copies:
        return
    asked = (length or _UNNAMED) * max(copies, 1)
    if asked > most:
        named = ", ".join(f"{name}={params[name]}" for name in (*lengths, *_COPIES) if name in params)
        raise ModelError(
            "too_many_tokens",
            f"{named}: that is up to {asked:,} tokens for one record, and this worker generates at most {most:,} "
            "(HUGQUEUE_MAX_NEW_TOKENS), those of all beams or sequences together. Ask for fewer: "
            "-p max_new_tokens=N.",
        )


def _number(params: Mapping[str, Json], name: str) -> int:
    value = params.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
