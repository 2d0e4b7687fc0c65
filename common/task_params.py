"""The parameters of every task: name, type, range, and whether null is taken.

The one list of them. The producer checks a job by it before anything is sent, the runners check again what they are
given, and `docs/tasks.md` says what each parameter means. Tasks of other distributions declare nothing here.
"""

from collections.abc import Mapping
from string import Formatter

from common.params import (
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    LIST_OF_TEXTS,
    NUMBER,
    OBJECT,
    OBJECTS,
    POSITIVE,
    SHARE,
    STRINGS,
    TEXT,
    TEXTS,
    TOKEN_IDS,
    WHOLE,
    ParamType,
    either,
    number,
    one_of,
)
from common.records import DTYPES, Json

Params = Mapping[str, ParamType]

#: How a model is loaded, for every task that has one; the rest says how it runs.
LOAD_PARAMS: Params = {"dtype": one_of(*DTYPES), "ignore_auto_map": FLAG}

#: Poolings of an embedding, in the order in which sentence-transformers joins several.
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def _is_pooling(value: Json) -> bool:
    return isinstance(value, str) and all(mode in POOLING_MODES for mode in value.split("+"))


def _is_id_lists(value: Json) -> bool:
    return isinstance(value, list) and bool(value) and all(bool(ids) and TOKEN_IDS.accepts(ids) for ids in value)


def _is_labels(value: Json) -> bool:
    return TEXTS.accepts(value) and (isinstance(value, list) or bool(value.replace(",", "").strip()))


def _is_template(value: Json) -> bool:
    """Whether `str.format` puts the label in, and nothing else: a width, as in `{:>1000000000}`, takes memory."""
    try:
        parts = list(Formatter().parse(value)) if isinstance(value, str) else []
    except ValueError:
        return False
    places = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    return places == [("", "", None)] or (bool(places) and set(places) == {("0", "", None)})


def _is_decay(value: Json) -> bool:
    return isinstance(value, list) and len(value) == 2 and WHOLE.accepts(value[0]) and NUMBER.accepts(value[1])


def _is_ids(value: Json) -> bool:
    return COUNT_OR_ZERO.accepts(value) or (bool(value) and TOKEN_IDS.accepts(value))


_IDS = ParamType("a token id, or a list of them", _is_ids)
#: What makes scores of a classifier's logits.
_FUNCTION = one_of("sigmoid", "softmax", "none")
_TRUNCATION = either(one_of("longest_first", "only_first", "only_second"), True, False)

#: Those of `generate` that a job may set. Left out are those that choose caches, compilers or assistant models, that
#: change what comes back, or that make a record's text depend on the others of its batch (`max_time`).
GENERATE_PARAMS: Params = {
    "bad_words_ids": ParamType("a list of lists of token ids", _is_id_lists),
    "begin_suppress_tokens": TOKEN_IDS,
    "decoder_start_token_id": COUNT_OR_ZERO,
    "do_sample": FLAG,
    "early_stopping": either(FLAG, "never"),
    "encoder_no_repeat_ngram_size": COUNT_OR_ZERO,
    "encoder_repetition_penalty": POSITIVE,
    "eos_token_id": _IDS,
    "epsilon_cutoff": SHARE,
    "eta_cutoff": SHARE,
    "exponential_decay_length_penalty": ParamType("a list of two numbers, [start, factor]", _is_decay),
    "forced_bos_token_id": COUNT_OR_ZERO,
    "forced_eos_token_id": _IDS,
    "length_penalty": NUMBER,
    "max_length": COUNT,
    "max_new_tokens": COUNT,
    "min_length": COUNT_OR_ZERO,
    "min_new_tokens": COUNT_OR_ZERO,
    "min_p": SHARE,
    "no_repeat_ngram_size": COUNT_OR_ZERO,
    "num_beams": COUNT,
    "num_return_sequences": COUNT,
    "remove_invalid_values": FLAG,
    "renormalize_logits": FLAG,
    "repetition_penalty": POSITIVE,
    "stop_strings": STRINGS,
    "suppress_tokens": TOKEN_IDS,
    "temperature": POSITIVE,
    "top_h": number(above=0, most=1),
    "top_k": COUNT_OR_ZERO,
    "top_p": SHARE,
    "typical_p": number(above=0, most=1),
}

#: Of encoder-decoders: what `generate` takes, and how texts become tokens and back.
SEQ2SEQ_PARAMS: Params = {**GENERATE_PARAMS, "clean_up_tokenization_spaces": FLAG, "seed": WHOLE, "truncation": FLAG}

#: Labels of the user's own, for a job or for one record.
_LABELS: Params = {
    "candidate_labels": ParamType("at least one label: a list, or a text with commas", _is_labels, TEXTS.parse),
    "hypothesis_template": ParamType("a text with one {} for the label", _is_template, TEXT.parse),
}
_CLASSES: Params = {"top_k": either(COUNT, None), "function_to_apply": _FUNCTION}

#: What goes to `generate` in speech recognition; models that do not generate (CTC) have no use for it.
SPEECH_GENERATE_PARAMS: Params = {
    "language": TEXT,
    "task": one_of("transcribe", "translate"),
    **{name: GENERATE_PARAMS[name] for name in ("max_new_tokens", "num_beams", "do_sample", "temperature")},
}

#: Task to its parameters, but for `LOAD_PARAMS`.
TASK_PARAMS: Mapping[str, Params] = {
    "fill-mask": {"top_k": COUNT, "targets": TEXTS},
    "text-classification": {**_CLASSES, "truncation": _TRUNCATION, "max_length": COUNT},
    "token-classification": {
        "aggregation_strategy": one_of("none", "simple", "first", "average", "max"),
        "ignore_labels": LIST_OF_TEXTS,
        "stride": COUNT_OR_ZERO,
    },
    "zero-shot-classification": {**_LABELS, "multi_label": FLAG},
    "text-generation": {
        **{name: kind for name, kind in GENERATE_PARAMS.items() if name != "stop_strings"},
        "add_special_tokens": FLAG,
        "clean_up_tokenization_spaces": FLAG,
        "continue_final_message": FLAG,
        "documents": OBJECTS,
        "prefix": TEXT,
        "return_full_text": FLAG,
        "seed": WHOLE,
        "skip_special_tokens": FLAG,
        "stop_sequence": STRINGS,  # the pipeline's name for stop strings
        "tokenizer_encode_kwargs": OBJECT,
        "tools": OBJECTS,
        "usage": FLAG,
    },
    "feature-extraction": {"truncation": _TRUNCATION},
    "embedding": {
        "normalize": FLAG,
        "pooling": ParamType(f"one of {', '.join(POOLING_MODES)}, or several joined by +", _is_pooling, parse=str),
        "prompt": TEXT,
        "prompt_name": TEXT,
        "truncate_dim": COUNT,
    },
    "table-question-answering": {"truncation": FLAG},
    "question-answering": {
        "align_to_words": FLAG,
        "doc_stride": COUNT_OR_ZERO,
        "handle_impossible_answer": FLAG,
        "max_answer_len": COUNT,
        "max_question_len": COUNT,
        "max_seq_len": COUNT,
        "top_k": COUNT,
    },
    "translation": {**SEQ2SEQ_PARAMS, "src_lang": TEXT, "tgt_lang": TEXT},
    "summarization": SEQ2SEQ_PARAMS,
    "text2text-generation": SEQ2SEQ_PARAMS,
    "image-classification": {**_CLASSES, "top_k": COUNT},
    "zero-shot-image-classification": _LABELS,
    "object-detection": {"threshold": SHARE},
    "image-segmentation": {
        "subtask": one_of("panoptic", "instance", "semantic"),
        "threshold": SHARE,
        "mask_threshold": SHARE,
        "overlap_mask_area_threshold": SHARE,
    },
    "depth-estimation": {"predicted_depth": FLAG},
    "image-feature-extraction": {"pool": FLAG},
    "audio-classification": _CLASSES,
    "zero-shot-audio-classification": _LABELS,
    "automatic-speech-recognition": {
        "chunk_length_s": POSITIVE,
        "stride_length_s": number(least=0),
        "return_timestamps": either(one_of("word", "char"), True, False),
        "return_language": FLAG,
        **SPEECH_GENERATE_PARAMS,
    },
}
