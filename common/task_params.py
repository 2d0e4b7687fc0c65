"""The parameters of every task: name, type, range, and whether null is allowed.

The producer checks jobs against it before anything is sent, runners check again, and `docs/tasks.md` describes each
parameter. Tasks of other distributions declare nothing here.
"""

from collections.abc import Mapping
from string import Formatter

from common.embedding_params import NUMBERS
from common.jobs import DTYPES
from common.params import (
    BOOLEAN,
    FRACTION,
    INTEGER,
    LIST_OF_TEXTS,
    NON_BLANK_TEXT,
    NON_NEGATIVE_INTEGER,
    NUMBER,
    OBJECT,
    OBJECTS,
    POSITIVE_INTEGER,
    POSITIVE_NUMBER,
    STRINGS,
    TEXT,
    TEXTS,
    TOKEN_IDS,
    ParamType,
    choice,
    either,
    list_of,
    number,
)
from common.records import Json
from common.vector_ranges import is_ranges

Params = Mapping[str, ParamType]

#: How a model is loaded, for every task; the other parameters control how it runs.
LOAD_PARAMS: Params = {"dtype": choice(*DTYPES), "ignore_auto_map": BOOLEAN}

#: Characters of a system message: it is part of the job, which workers read for each chunk.
MAX_SYSTEM_LENGTH = 65_536

#: Pooling modes of embeddings, in the order in which sentence-transformers concatenates several.
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
#: Functions of two vectors, as sentence-transformers names them.
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
#: Number formats of vectors: those of `sentence_transformers.quantize_embeddings`, and float16.
PRECISIONS = tuple(NUMBERS)


def _is_pooling(value: Json) -> bool:
    return isinstance(value, str) and all(mode in POOLING_MODES for mode in value.split("+"))


def _is_id_lists(value: Json) -> bool:
    return isinstance(value, list) and bool(value) and all(bool(ids) and TOKEN_IDS.accepts(ids) for ids in value)


def _is_labels(value: Json) -> bool:
    return TEXTS.accepts(value) and (isinstance(value, list) or bool(value.replace(",", "").strip()))


def _is_choices(value: Json) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) and text for text in value)


def _parse_choices(text: str) -> Json:
    value = TEXTS.parse(text)
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _is_template(value: Json) -> bool:
    """Whether `str.format` inserts the label and nothing else: a width such as `{:>1000000000}` would take memory."""
    try:
        parts = list(Formatter().parse(value)) if isinstance(value, str) else []
    except ValueError:
        return False
    fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    return fields == [("", "", None)] or (bool(fields) and set(fields) == {("0", "", None)})


def _is_decay(value: Json) -> bool:
    return isinstance(value, list) and len(value) == 2 and INTEGER.accepts(value[0]) and NUMBER.accepts(value[1])


def _is_ids(value: Json) -> bool:
    return NON_NEGATIVE_INTEGER.accepts(value) or (bool(value) and TOKEN_IDS.accepts(value))


def _is_system(value: Json) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= MAX_SYSTEM_LENGTH


_RANGES = ParamType(
    "a .json or .npy file with two rows of numbers, the minimum and the maximum of each dimension", is_ranges, parse=str
)
_POOLING = ParamType(f"one of {', '.join(POOLING_MODES)}, or several joined by +", _is_pooling, parse=str)
_PROMPTS: Params = {"prompt": TEXT, "prompt_name": TEXT}
#: Constraints on generated text; `common.output_constraints` says what else they must be.
_CONSTRAINTS: Params = {
    "json_schema": ParamType("a JSON schema: an object, or @FILE with one", lambda value: isinstance(value, dict)),
    "regex": ParamType("a regular expression", lambda value: isinstance(value, str) and bool(value), parse=str),
    "choices": ParamType("two texts or more: a list, or a text with commas", _is_choices, _parse_choices),
}
#: Choices of one request of a batch file: as many as OpenAI's API allows.
MAX_CHOICES = 128
#: The most likely tokens that may be named beside each token: as many as OpenAI's API allows.
MAX_LOGPROBS = 20
#: Details of generated texts.
_TEXT_DETAILS: Params = {
    "logprobs": ParamType(
        f"a whole number from 0 to {MAX_LOGPROBS}",
        lambda value: NON_NEGATIVE_INTEGER.accepts(value) and value <= MAX_LOGPROBS,
    ),
    "usage": BOOLEAN,
}
_IDS = ParamType("a token id, or a list of them", _is_ids)
_SYSTEM = ParamType(f"a text of up to {MAX_SYSTEM_LENGTH:,} characters", _is_system, parse=str)
#: The function from a classifier's logits to scores.
_FUNCTION = choice("sigmoid", "softmax", "none")
_TRUNCATION = either(choice("longest_first", "only_first", "only_second"), True, False)

#: Parameters of `generate` that a job may set. Excluded are those that select caches, compilers or assistant models,
#: change what is returned, or make a record's output depend on its batch (`max_time`).
GENERATE_PARAMS: Params = {
    "bad_words_ids": ParamType("a list of lists of token ids", _is_id_lists),
    "begin_suppress_tokens": TOKEN_IDS,
    "decoder_start_token_id": NON_NEGATIVE_INTEGER,
    "do_sample": BOOLEAN,
    "early_stopping": either(BOOLEAN, "never"),
    "encoder_no_repeat_ngram_size": NON_NEGATIVE_INTEGER,
    "encoder_repetition_penalty": POSITIVE_NUMBER,
    "eos_token_id": _IDS,
    "epsilon_cutoff": FRACTION,
    "eta_cutoff": FRACTION,
    "exponential_decay_length_penalty": ParamType("a list of two numbers, [start, factor]", _is_decay),
    "forced_bos_token_id": NON_NEGATIVE_INTEGER,
    "forced_eos_token_id": _IDS,
    "length_penalty": NUMBER,
    "max_length": POSITIVE_INTEGER,
    "max_new_tokens": POSITIVE_INTEGER,
    "min_length": NON_NEGATIVE_INTEGER,
    "min_new_tokens": NON_NEGATIVE_INTEGER,
    "min_p": FRACTION,
    "no_repeat_ngram_size": NON_NEGATIVE_INTEGER,
    "num_beams": POSITIVE_INTEGER,
    "num_return_sequences": POSITIVE_INTEGER,
    "remove_invalid_values": BOOLEAN,
    "renormalize_logits": BOOLEAN,
    "repetition_penalty": POSITIVE_NUMBER,
    "stop_strings": STRINGS,
    "suppress_tokens": TOKEN_IDS,
    "temperature": POSITIVE_NUMBER,
    "top_h": number(above=0, maximum=1),
    "top_k": NON_NEGATIVE_INTEGER,
    "top_p": FRACTION,
    "typical_p": number(above=0, maximum=1),
}

#: Parameters of encoder-decoder models: generation, and tokenization in both directions.
SEQ2SEQ_PARAMS: Params = {
    **GENERATE_PARAMS,
    "clean_up_tokenization_spaces": BOOLEAN,
    "seed": INTEGER,
    "truncation": BOOLEAN,
}

#: Candidate labels, for a job or for one record.
_LABELS: Params = {
    "candidate_labels": ParamType("at least one label: a list, or a text with commas", _is_labels, TEXTS.parse),
    "hypothesis_template": ParamType("a text with one {} for the label", _is_template, TEXT.parse),
}
_LABELS_ONLY: Params = {"candidate_labels": _LABELS["candidate_labels"]}
_CLASSES: Params = {"top_k": either(POSITIVE_INTEGER, None), "function_to_apply": _FUNCTION}

#: Parameters of `generate` in speech recognition; CTC models, which do not generate, ignore them.
SPEECH_GENERATE_PARAMS: Params = {
    "language": TEXT,
    "task": choice("transcribe", "translate"),
    **{name: GENERATE_PARAMS[name] for name in ("max_new_tokens", "num_beams", "do_sample", "temperature")},
}

#: The question of every record that has none of its own.
_QUESTION: Params = {"question": NON_BLANK_TEXT}
#: Parameters of `generate` for short answers.
ANSWER_GENERATE_PARAMS: Params = {
    name: GENERATE_PARAMS[name] for name in ("max_new_tokens", "num_beams", "do_sample", "temperature")
}
#: Parameters of `generate` in text-to-audio.
AUDIO_GENERATE_PARAMS: Params = {
    name: GENERATE_PARAMS[name] for name in ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p")
}
#: Parameters of chats with images or audio.
_MULTIMODAL_PARAMS: Params = {
    **{name: kind for name, kind in GENERATE_PARAMS.items() if name != "stop_strings"},
    **_CONSTRAINTS,
    **_TEXT_DETAILS,
    "chat": BOOLEAN,
    "clean_up_tokenization_spaces": BOOLEAN,
    "continue_final_message": BOOLEAN,
    "seed": INTEGER,
    "skip_special_tokens": BOOLEAN,
    "stop_sequence": STRINGS,
    "system": _SYSTEM,
}

#: Parameters by task, except `LOAD_PARAMS`.
TASK_PARAMS: Mapping[str, Params] = {
    "fill-mask": {"top_k": POSITIVE_INTEGER, "targets": TEXTS},
    "text-classification": {**_CLASSES, "truncation": _TRUNCATION, "max_length": POSITIVE_INTEGER},
    "token-classification": {
        "aggregation_strategy": choice("none", "simple", "first", "average", "max"),
        "ignore_labels": LIST_OF_TEXTS,
        "stride": NON_NEGATIVE_INTEGER,
    },
    "zero-shot-classification": {**_LABELS, "multi_label": BOOLEAN},
    "text-generation": {
        **{name: kind for name, kind in GENERATE_PARAMS.items() if name != "stop_strings"},
        **_CONSTRAINTS,
        **_TEXT_DETAILS,
        "add_special_tokens": BOOLEAN,
        "chat": BOOLEAN,
        "clean_up_tokenization_spaces": BOOLEAN,
        "continue_final_message": BOOLEAN,
        "documents": OBJECTS,
        "prefix": TEXT,
        "return_full_text": BOOLEAN,
        "seed": INTEGER,
        "skip_special_tokens": BOOLEAN,
        "stop_sequence": STRINGS,  # the pipeline's name for stop strings
        "system": _SYSTEM,
        "tokenizer_encode_kwargs": OBJECT,
        "tool_calls": BOOLEAN,
        "tools": OBJECTS,
    },
    "feature-extraction": {"truncation": _TRUNCATION},
    "embedding": {
        "normalize": BOOLEAN,
        "pooling": _POOLING,
        "precision": choice(*PRECISIONS),
        **_PROMPTS,
        "ranges": _RANGES,
        "split_overlap": NON_NEGATIVE_INTEGER,
        "split_tokens": POSITIVE_INTEGER,
        "task": TEXT,
        "truncate_dim": POSITIVE_INTEGER,
    },
    "rerank": {
        "function_to_apply": _FUNCTION,
        "max_length": POSITIVE_INTEGER,
        **_PROMPTS,
        "return_all_scores": BOOLEAN,
        "return_documents": BOOLEAN,
        "top_k": POSITIVE_INTEGER,
    },
    "sentence-similarity": {
        "normalize": BOOLEAN,
        "pooling": _POOLING,
        **_PROMPTS,
        "similarity": choice(*SIMILARITIES),
        "task": TEXT,
        "truncate_dim": POSITIVE_INTEGER,
    },
    "sparse-embedding": {"max_active_dims": POSITIVE_INTEGER, **_PROMPTS, "task": TEXT, "tokens": BOOLEAN},
    "multi-vector-embedding": {**_PROMPTS, "task": TEXT},
    "table-question-answering": {"truncation": BOOLEAN},
    "question-answering": {
        "align_to_words": BOOLEAN,
        "doc_stride": NON_NEGATIVE_INTEGER,
        "handle_impossible_answer": BOOLEAN,
        "max_answer_len": POSITIVE_INTEGER,
        "max_question_len": POSITIVE_INTEGER,
        "max_seq_len": POSITIVE_INTEGER,
        "top_k": POSITIVE_INTEGER,
    },
    "translation": {**SEQ2SEQ_PARAMS, "src_lang": TEXT, "tgt_lang": TEXT},
    "summarization": SEQ2SEQ_PARAMS,
    "text2text-generation": SEQ2SEQ_PARAMS,
    "image-classification": {**_CLASSES, "top_k": POSITIVE_INTEGER},
    "zero-shot-image-classification": _LABELS,
    "object-detection": {"threshold": FRACTION},
    "zero-shot-object-detection": {**_LABELS_ONLY, "threshold": FRACTION, "top_k": POSITIVE_INTEGER},
    "keypoint-matching": {"threshold": FRACTION},
    "mask-generation": {
        "points_per_batch": POSITIVE_INTEGER,
        "points_per_crop": POSITIVE_INTEGER,
        "crops_n_layers": NON_NEGATIVE_INTEGER,
        "crop_overlap_ratio": FRACTION,
        "crop_n_points_downscale_factor": POSITIVE_INTEGER,
        "crops_nms_thresh": FRACTION,
        "pred_iou_thresh": FRACTION,
        "stability_score_thresh": FRACTION,
        "stability_score_offset": NON_NEGATIVE_INTEGER,
        "mask_threshold": NUMBER,
        "output_bboxes_mask": BOOLEAN,
    },
    "image-text-to-text": {**_MULTIMODAL_PARAMS, "text": NON_BLANK_TEXT},
    "visual-question-answering": {**_QUESTION, "top_k": POSITIVE_INTEGER, **ANSWER_GENERATE_PARAMS},
    "document-question-answering": {
        **_QUESTION,
        "doc_stride": NON_NEGATIVE_INTEGER,
        "handle_impossible_answer": BOOLEAN,
        "lang": NON_BLANK_TEXT,
        "max_answer_len": POSITIVE_INTEGER,
        "max_seq_len": POSITIVE_INTEGER,
        "top_k": POSITIVE_INTEGER,
        **ANSWER_GENERATE_PARAMS,
    },
    "any-to-any": _MULTIMODAL_PARAMS,
    "decision": {},
    "text-to-audio": {
        "format": choice("wav", "flac"),
        "seed": INTEGER,
        "speaker_embeddings": list_of("numbers", NUMBER.accepts),
        "speaker_id": NON_NEGATIVE_INTEGER,
        **AUDIO_GENERATE_PARAMS,
    },
    "video-classification": {
        **_CLASSES,
        "top_k": POSITIVE_INTEGER,
        "num_frames": POSITIVE_INTEGER,
        "frame_sampling_rate": POSITIVE_INTEGER,
    },
    "image-segmentation": {
        "subtask": choice("panoptic", "instance", "semantic"),
        "threshold": FRACTION,
        "mask_threshold": FRACTION,
        "overlap_mask_area_threshold": FRACTION,
    },
    "depth-estimation": {"predicted_depth": BOOLEAN},
    "image-feature-extraction": {"pool": BOOLEAN},
    "audio-classification": _CLASSES,
    "zero-shot-audio-classification": _LABELS,
    "automatic-speech-recognition": {
        "chunk_length_s": POSITIVE_NUMBER,
        "stride_length_s": number(minimum=0),
        "return_timestamps": either(choice("word", "char"), True, False),
        "return_language": BOOLEAN,
        **SPEECH_GENERATE_PARAMS,
    },
}
