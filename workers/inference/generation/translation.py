"""Translation directions: how a model receives the source and the target language.

T5 takes a sentence before the text (from `task_specific_params` of its configuration); mBART, NLLB and M2M100 take
language codes through their tokenizer; some Marian models take `>>code<<` before the text; most models translate one
pair of languages and take nothing.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import ModelError
from common.records import Json
from common.suggestions import did_you_mean
from common.tasks import translation_languages

_CODE = re.compile(r"^[a-z]{2,3}_[A-Za-z]{2,4}$")
_PAIR_TASK = re.compile(r"^translation_[a-z]+_to_[a-z]+$")


@dataclass(frozen=True, slots=True)
class TranslationDirection:
    """What makes a model translate between two languages."""

    task: str  #: the key for `task_specific_params`
    prefix: str = ""  #: before each text
    source: str | None = None  #: for the tokenizer's `src_lang`
    first_token: int | None = None  #: of the translation: the code of its language


def translation_direction(
    task: str, params: Mapping[str, Json], tokenizer: Any, task_params: Collection[str]
) -> TranslationDirection:
    """Return how this model receives the languages in the task's name, or in `src_lang` and `tgt_lang`.

    Args:
        task: `translation`, or `translation_xx_to_yy`.
        params: the job's.
        tokenizer: its attributes show which kind it is.
        task_params: the names in `task_specific_params` of the model's configuration.

    Raises:
        ModelError: `bad_param`, a language is missing, or the model does not have it.
    """
    own = {name: params[name] for name in ("src_lang", "tgt_lang") if name in params}
    named = translation_languages(task) or (None, None)
    source, target = own.get("src_lang", named[0]), own.get("tgt_lang", named[1])
    if hasattr(tokenizer, "src_lang"):
        return _by_codes(task, tokenizer, source, target)
    pairs = [name for name in task_params if _PAIR_TASK.match(name)]
    if pairs:
        return TranslationDirection(_find_pair(pairs, source, target))
    codes = getattr(tokenizer, "supported_language_codes", [])
    if codes and target is not None:
        return TranslationDirection(task, prefix=_marian_prefix(codes, target))
    if own:
        names = " and ".join(sorted(own))
        raise ModelError("bad_param", f"This model translates one pair of languages; leave out {names}.")
    return TranslationDirection(task)


def _by_codes(task: str, tokenizer: Any, source: str | None, target: str | None) -> TranslationDirection:
    ids = _language_ids(tokenizer)
    if source is None or target is None:
        raise ModelError(
            "bad_param",
            f"This model translates between {len(ids)} languages: name two of them with -p src_lang= and "
            f"-p tgt_lang= (its codes look like {', '.join(sorted(ids)[:8])}).",
        )
    return TranslationDirection(task, source=_find_code(source, ids), first_token=ids[_find_code(target, ids)])


def _language_ids(tokenizer: Any) -> dict[str, int]:
    """Return the token id of each language code."""
    known = getattr(tokenizer, "lang_code_to_id", None)
    if known:
        return dict(known)
    codes = [token for token in tokenizer.all_special_tokens if _CODE.match(token)]
    return dict(zip(codes, tokenizer.convert_tokens_to_ids(codes), strict=True))


def _find_code(language: str, codes: Collection[str]) -> str:
    """Return the model's code for `language`: itself, or the only one that starts with it (`ko_KR` for `ko`)."""
    if language in codes:
        return language
    matches = [code for code in codes if code.startswith(f"{language}_")]
    if len(matches) == 1:
        return matches[0]
    raise ModelError("bad_param", f"This model has no language {language!r}. {did_you_mean(language, codes)}")


def _find_pair(pairs: list[str], source: str | None, target: str | None) -> str:
    """Return the model's task for two languages; its first one where none are named, like transformers 4."""
    if source is None and target is None:
        return pairs[0]
    wanted = f"translation_{source}_to_{target}"
    if wanted in pairs:
        return wanted
    raise ModelError("bad_param", f"This model does not have {wanted}; it has {', '.join(pairs)}.")


def _marian_prefix(codes: list[str], target: str) -> str:
    wanted = f">>{target}<<"
    if wanted in codes:
        return f"{wanted} "
    raise ModelError("bad_param", f"This model does not translate into {target!r}. {did_you_mean(wanted, codes)}")
