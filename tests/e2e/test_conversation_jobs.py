"""Chats through a real queue: learned by adapters that are stored alone, reported to TensorBoard, and asked."""

import json
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tests.support.finetune_runs import model_directory, result_of
from tests.support.processes import Shell, Workers
from tests.support.tiny_chats import CHATS, PREFERENCES, chat, chat_model

StartWorkers = Callable[..., Workers]


def peft_answer(base: Path, adapter: Path) -> str:
    """What peft's own model answers."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    pipe = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(adapter))
    found = pipe(chat("Where is Emil?"), max_new_tokens=8, do_sample=False, return_full_text=False)
    return str(found[0]["generated_text"])


def test_chats_and_preferences_are_learned_and_their_adapters_serve(
    tmp_path: Path, environ: dict[str, str], shell: Shell, start_workers: StartWorkers
) -> None:
    environ |= {"HUGQUEUE_MODELS_URL": str(tmp_path / "models"), "HUGQUEUE_MODEL_ROOTS": str(tmp_path)}
    base = chat_model(tmp_path / "base")
    chats, pairs, asked = (tmp_path / f"{name}.jsonl" for name in ("chats", "pairs", "asked"))
    chats.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in CHATS))
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PREFERENCES))
    asked.write_text(json.dumps({"messages": chat("Where is Emil?")}) + "\n")
    options = ("--task", "text-generation", "--batch-size", "2", "--learning-rate", "2e-2", "--lora", "--no-merge")
    start_workers("--train", HUGQUEUE_REPORT_TO="tensorboard")
    first = shell.run(
        "finetune", str(chats), "-m", str(base), *options, "--epochs", "12", "--eval", str(chats),
        "--report-to", "tensorboard",
    ).stdout.strip()  # fmt: skip
    second = shell.run("finetune", str(pairs), "-m", str(base), *options, "--eval", str(pairs)).stdout.strip()
    refused = shell.run("finetune", str(chats), "-m", str(base), *options, "--report-to", "wandb").stdout.strip()
    start_workers()
    greedy = ("-p", "max_new_tokens=8", "-p", "do_sample=false")
    answers = [
        shell.submit("--task", "text-generation", "-m", f"job:{job}", str(asked), *greedy) for job in (first, second)
    ]
    shell.run("wait", first, second, *answers, seconds=200)
    result = result_of(shell, first)
    assert result["metrics"]["perplexity"] < result["evaluations"][0]["perplexity"]
    files = {path.name for path in model_directory(tmp_path / "models", first).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "runs", "README.md"} <= files
    assert "model.safetensors" not in files
    assert result_of(shell, second)["metrics"]["rewards/margins"] > 0
    [[said], [other]] = [shell.results(job) for job in answers]
    assert said["output"] == peft_answer(base, model_directory(tmp_path / "models", first))
    assert said["output"].startswith("Emil is in Seoul")
    assert other["output"] != said["output"]
    shell.run("report", second, "-o", str(tmp_path / "report.html"))
    assert "rewards/margins" in (tmp_path / "report.html").read_text()
    shell.run("wait", refused, status=1)
    assert shell.status(refused)["error"]["code"] == "report_not_allowed"
