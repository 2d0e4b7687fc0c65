"""Parameters of embeddings that depend on each other, checked at submit and again by the worker."""

from collections.abc import Mapping

from common.errors import ModelError
from common.records import Json

#: Types of a vector's numbers, as Arrow names them, by `precision`.
NUMBERS = {
    "float32": "float",
    "float16": "halffloat",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "int8",
    "ubinary": "uint8",
}
#: Precisions whose numbers are steps between a minimum and a maximum.
WITH_RANGES = ("int8", "uint8")
#: Precisions that hold eight dimensions in a number.
PACKED = ("binary", "ubinary")


def check_embedding_params(params: Mapping[str, Json]) -> None:
    """Check parameters, each of them valid, together.

    Raises:
        ModelError: `bad_param`, one needs another, or contradicts it.
    """
    precision = params.get("precision", "float32")
    if "ranges" in params and precision not in WITH_RANGES:
        raise _bad_param(f"ranges is for precision=int8 and precision=uint8; the precision is {precision}.")
    if "truncate_dim" in params:
        check_packs(precision, params["truncate_dim"])
    if "split_overlap" not in params:
        return
    if "split_tokens" not in params:
        raise _bad_param("split_overlap needs split_tokens, the number of tokens of a piece.")
    if 2 * params["split_overlap"] > params["split_tokens"]:
        raise _bad_param(
            f"split_overlap must be at most half of split_tokens, found {params['split_overlap']} and "
            f"{params['split_tokens']}."
        )


def check_packs(precision: str, dimension: int) -> None:
    """Check that vectors of that dimension can be packed, if the precision packs them.

    Raises:
        ModelError: `bad_param`, the dimension is not a multiple of 8.
    """
    if precision in PACKED and dimension % 8:
        hint = f" Set truncate_dim to a multiple of 8, such as {dimension // 8 * 8}." if dimension > 8 else ""
        raise _bad_param(
            f"precision={precision} packs 8 dimensions into a byte, and vectors of {dimension} are not a multiple of 8."
            f"{hint}"
        )


def _bad_param(message: str) -> ModelError:
    return ModelError("bad_param", message)
