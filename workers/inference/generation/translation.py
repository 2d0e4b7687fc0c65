"""From which language to which: what a translation model needs to be told, and how it is told.

Models differ: T5 takes a sentence before the text (from `task_specific_params` of its configuration), mBART, NLLB and
M2M100 take codes through their tokenizer, some of Marian's take `>>code<<` before the text, and most models have one
pair of languages and take nothing.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import ModelError
from common.records import Json
from common.tasks import translation_languages

_CODE = re.compile(r"^[a-z]{2,3}_[A-Za-z]{2,4}$")
_PAIR_TASK = re.compile(r"^translation_[a-z]+_to_[a-z]+$")


@dataclass(frozen=True, slots=True)
class TranslationDirection:
    """What makes the model translate the right way."""

    task: str  #: the key for `task_specific_params`
    prefix: str = ""  #: before each text
    source: str | None = None  #: for the tokenizer's `src_lang`
    first_token: int | None = None  #: of the translation: the code of its language


def translation_direction(
    task: str, params: Mapping[str, Json], tokenizer: Any, task_params: Collection[str]
) -> TranslationDirection:
    """Return how to tell this model the languages that the task's name, or `src_lang` and `tgt_lang`, say.

    Args:
        task: `translation`, or `translation_xx_to_yy`.
        params: the job's.
        tokenizer: shows by its attributes which kind it is.
        task_params: the names in `task_specific_params` of the model's configuration.

    Raises:
        ModelError: `bad_param`, a language is missing, or is none of the model's.
    """
    given = {name: params[name] for name in ("src_lang", "tgt_lang") if name in params}
    named = translation_languages(task) or (None, None)
    source, target = given.get("src_lang", named[0]), given.get("tgt_lang", named[1])
    if hasattr(tokenizer, "src_lang"):
        return _by_codes(task, tokenizer, source, target)
    pairs = [name for name in task_params if _PAIR_TASK.match(name)]
    if pairs:
        return TranslationDirection(_pair(pairs, source, target))
    codes = getattr(tokenizer, "supported_language_codes", [])
    if codes and target is not None:
        return TranslationDirection(task, prefix=_marian(codes, target))
    if given:
        raise ModelError("bad_param", f"This model has one pair of languages; leave out {' and '.join(sorted(given))}.")
    return TranslationDirection(task)


def _by_codes(task: str, tokenizer: Any, source: str | None, target: str | None) -> TranslationDirection:
    ids = _language_ids(tokenizer)
    if source is None or target is None:
        some = ", ".join(sorted(ids)[:8])
        raise ModelError(
            "bad_param",
            f"This model translates between {len(ids)} languages: name two of them with -p src_lang= and "
            f"-p tgt_lang= (its codes look like {some}).",
        )
    return TranslationDirection(task, source=_code(source, ids), first_token=ids[_code(target, ids)])


def _language_ids(tokenizer: Any) -> dict[str, int]:
    """Return the token id of each language code."""
    known = getattr(tokenizer, "lang_code_to_id", None)
    if known:
        return dict(known)
    codes = [token for token in tokenizer.all_special_tokens if _CODE.match(token)]
    return dict(zip(codes, tokenizer.convert_tokens_to_ids(codes), strict=True))


def _code(language: str, codes: Collection[str]) -> str:
    """Return the model's code for `language`: itself, or the only one that begins with it, as `ko_KR` with `ko`."""
    if language in codes:
        return language
    begin = [code for code in codes if code.startswith(f"{language}_")]
    if len(begin) == 1:
        return begin[0]
    raise ModelError("bad_param", f"This model has no language {language!r}. {_nearest(language, codes)}")


def _pair(pairs: list[str], source: str | None, target: str | None) -> str:
    """Return the model's task for two languages; its first where none were named, as transformers 4 did."""
    if source is None and target is None:
        return pairs[0]
    wanted = f"translation_{source}_to_{target}"
    if wanted in pairs:
        return wanted
    raise ModelError("bad_param", f"This model has no {wanted}; it has {', '.join(pairs)}.")


def _marian(codes: list[str], target: str) -> str:
    wanted = f">>{target}<<"
    if wanted in codes:
        return f"{wanted} "
    raise ModelError("bad_param", f"This model does not translate into {target!r}. {_nearest(wanted, codes)}")


def _nearest(language: str, codes: Collection[str]) -> str:
    near = difflib.get_close_matches(language, codes, n=3)
    return f"Did you mean {' or '.join(near)}?" if near else f"It has: {', '.join(sorted(codes))}."
