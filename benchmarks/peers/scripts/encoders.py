"""Embeds texts by another runtime. Arguments: RUNTIME PRECISION MODEL CACHE.

RUNTIME is openvino, onnx or fastembed; PRECISION float32, bfloat16 or int8, each as the library's documentation shows;
CACHE a directory for converted models.
"""

import json
import sys
from pathlib import Path
from typing import Any

from serving import Run, serve

_SIZE = 384  # of MiniLM's vectors, which fastembed asks for


def main() -> None:
    """Serve the runtime named on the command line."""
    runtime, precision, model, cache = sys.argv[1:]
    serve(lambda: _LOADERS[runtime](model, precision, Path(cache)))


def _openvino(model: str, precision: str, cache: Path) -> Run:
    from sentence_transformers import SentenceTransformer

    if precision == "int8":
        return _encode(SentenceTransformer(str(_openvino_int8(model, cache)), backend="openvino", **_INT8))
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    options = {"ov_config": {"INFERENCE_PRECISION_HINT": hint}}
    return _encode(SentenceTransformer(model, backend="openvino", device="cpu", model_kwargs=options))


_INT8: dict[str, Any] = {
    "device": "cpu",
    "model_kwargs": {"file_name": "openvino/openvino_model_qint8_quantized.xml"},
}


def _openvino_int8(model: str, cache: Path) -> Path:
    """Quantize by NNCF with the default configuration, calibrated on the texts of `cache`."""
    from optimum.intel import OVQuantizationConfig
    from sentence_transformers import SentenceTransformer, export_static_quantized_openvino_model

    target = cache / "openvino-int8"
    if not (target / _INT8["model_kwargs"]["file_name"]).exists():
        loaded = SentenceTransformer(model, backend="openvino", device="cpu")
        loaded.save_pretrained(str(target))
        export_static_quantized_openvino_model(
            loaded,
            OVQuantizationConfig(),
            str(target),
            dataset_name=str(cache / "calibration"),
            dataset_config_name="default",
            dataset_split="train",
            column_name="text",
        )
    return target


def _onnx(model: str, precision: str, cache: Path) -> Run:
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    target = cache / "onnx"
    if not (target / "onnx" / "model.onnx").exists():
        SentenceTransformer(model, backend="onnx", device="cpu").save_pretrained(str(target))
    if precision == "float32":
        return _encode(SentenceTransformer(str(target), backend="onnx", device="cpu"))
    file = target / "onnx" / "model_qint8_avx512_vnni.onnx"
    if not file.exists():
        loaded = SentenceTransformer(str(target), backend="onnx", device="cpu")
        export_dynamic_quantized_onnx_model(loaded, "avx512_vnni", str(target))
    options = {"file_name": f"onnx/{file.name}"}
    return _encode(SentenceTransformer(str(target), backend="onnx", device="cpu", model_kwargs=options))


def _encode(model: Any) -> Run:
    return lambda texts, batch: model.encode(texts, batch_size=batch, show_progress_bar=False)


def _fastembed(model: str, _: str, cache: Path) -> Run:
    import numpy as np
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    _onnx(model, "float32", cache)
    directory = cache / "onnx"
    limit = json.loads((Path(model) / "sentence_bert_config.json").read_text())["max_seq_length"]
    settings = directory / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"max_length": limit, "model_max_length": limit}))
    TextEmbedding.add_custom_model(
        model="minilm",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="minilm"),
        dim=_SIZE,
        model_file="onnx/model.onnx",
    )
    loaded = TextEmbedding("minilm", specific_model_path=str(directory))
    return lambda texts, batch: np.stack(list(loaded.embed(texts, batch_size=batch)))


_LOADERS = {"openvino": _openvino, "onnx": _onnx, "fastembed": _fastembed}

if __name__ == "__main__":
    main()
