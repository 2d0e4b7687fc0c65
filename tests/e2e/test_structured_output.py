"""A thousand records with a schema on a real chat model: all of them parse, and are valid under the schema."""

import json
from pathlib import Path

import jsonschema
import pytest

from tests.support.chat_model import chat_model
from tests.support.cli_processes import running_queue
from tests.support.processes import ROOT, lines

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
    model = chat_model(tmp_path)
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
