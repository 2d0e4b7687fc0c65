"""Chats and preferences: the tokens, masks and losses are TRL's; LoRA, checkpoints and metrics work as for texts."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, qwen2_5_chat_template

from common.errors import ModelError, UsageError, WorkerError
from common.training.labels import Labels
from common.training.options import TrainingOptions
from tests.support.finetune_runs import make_run_config, train_here
from tests.support.tiny_chats import CHATS, MARKED_TEMPLATE, PLAIN_TEMPLATE, PREFERENCES, chat, chat_model
from workers.models.load_options import LoadOptions
from workers.training.trainer.arguments import build_training_arguments
from workers.training.trainer.chat_masks import ChatTokenizer
from workers.training.trainer.conversation_recipes import CONVERSATION_RECIPES
from workers.training.trainer.metrics import IGNORE_INDEX
from workers.training.trainer.trl_trainers import preferences

EXAMPLES = [{"messages": messages} for messages in CHATS]
#: As TRL itself runs: nothing of the order or of the schedule is hugqueue's.
SAME = {"train_sampling_strategy": "random", "logging_steps": 1, "save_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat"))


def with_template(base: Path, template: str | None) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    return tokenizer


def masks_of(tokenizer: Any, chats: Sequence[Any]) -> list[tuple[list[int], list[bool]]]:
    found = ChatTokenizer(tokenizer)
    return [tuple(found.masked(messages, None)) for messages in chats]  # type: ignore[misc]


def expected_masks(tokenizer: Any, template: str | None, chats: Sequence[Any]) -> list[tuple[list[int], list[bool]]]:
    found = [
        tokenizer.apply_chat_template(
            messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        for messages in chats
    ]
    return [(one["input_ids"], list(map(bool, one["assistant_masks"]))) for one in found]


def test_the_assistants_words_are_those_that_trl_and_the_template_mark(base: Path) -> None:
    known = with_template(base, qwen2_5_chat_template)
    assert masks_of(known, CHATS) == expected_masks(known, get_training_chat_template(known), CHATS)
    marked = with_template(base, MARKED_TEMPLATE)
    expected = expected_masks(marked, None, CHATS)
    assert masks_of(marked, CHATS) == expected
    # Without marks, by what each answer adds to its prompt.
    assert masks_of(with_template(base, PLAIN_TEMPLATE), CHATS) == expected
    ids, learned = expected[1]
    said = marked.decode([id for id, bit in zip(ids, learned, strict=True) if bit])
    assert said == "the house is old<|im_end|>\nBerlin is old and a cat<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{% if loop.last %}{{ m.role }}{% endif %}{{ m.content }}{% endfor %}", "otherwise"),
        ("{% for m in messages %}{{ raise_exception('no system') }}{% endfor %}", "refuses it: no system"),
        ("{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}", "marks none"),
    ],
)
def test_a_template_that_does_not_tell_who_says_what_is_refused(base: Path, template: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"Example 1: .*{message}"):
        CONVERSATION_RECIPES["messages"].encode(with_template(base, template), EXAMPLES, Labels("messages"), 64)


def test_a_model_without_a_chat_template_learns_no_chats(base: Path) -> None:
    with pytest.raises(ModelError) as caught:
        ChatTokenizer(with_template(base, None))
    assert caught.value.code == "no_chat_template"


def test_long_chats_are_cut_at_their_end_and_long_prompts_at_their_beginning(base: Path) -> None:
    tokenizer = with_template(base, PLAIN_TEMPLATE)
    [(whole, learned), *_] = masks_of(tokenizer, CHATS)
    short, early = len(whole) - 2, learned.index(True)
    long = chat(*["the river of Seoul"] * 2 * early)
    found = CONVERSATION_RECIPES["messages"].encode(
        tokenizer, [EXAMPLES[0], {"messages": long[:-1] + long[-1:]}], Labels("messages"), short
    )
    assert found.columns["input_ids"][0] == whole[:short]
    assert [id != IGNORE_INDEX for id in found.columns["labels"][0]] == learned[:short]
    none = CONVERSATION_RECIPES["messages"].encode(tokenizer, EXAMPLES[:1], Labels("messages"), early)
    assert none.left_out == [0] and none.columns["input_ids"] == []
    [one] = PREFERENCES[:1]
    encode = CONVERSATION_RECIPES["preferences"].encode
    prompt, chosen, *_ = (column[0] for column in encode(tokenizer, [one], Labels("preferences"), 512).columns.values())
    cut = encode(tokenizer, [one], Labels("preferences"), len(prompt) + len(chosen) - 3)
    assert cut.columns["prompt_ids"][0] == [tokenizer.bos_token_id, *prompt[4:]]
    assert cut.columns["chosen_ids"][0] == chosen
    assert cut.truncated == {"cut at the beginning of their prompts": 1}


def own(base: Path, work: Path, examples: Sequence[Any], **options: Any) -> dict[str, Any]:
    config = make_run_config(
        work, "text-generation", base, examples, examples, **{"epochs": 3, "batch_size": 2, "warmup": 0.0} | options
    )
    return train_here(config)


def by_trl(kind: Any, arguments: Any, base: Path, examples: Sequence[Any], work: Path, **more: Any) -> Any:
    """A run of TRL's own trainer over the raw examples."""
    values = {
        "output_dir": str(work), "num_train_epochs": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3,
        "warmup_steps": 0, "weight_decay": 0.01, "seed": 42, "use_cpu": True, "bf16": False, "max_length": None,
        "gradient_checkpointing": False, "report_to": "none", "logging_steps": 1, "save_strategy": "no",
    } | more  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    dataset = datasets.Dataset.from_list(list(examples))
    trainer = kind(model, args=arguments(**values), train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    return trainer


def losses_of(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_chats_are_learned_with_the_losses_of_trls_own_trainer(tmp_path: Path) -> None:
    base = chat_model(tmp_path / "base", MARKED_TEMPLATE)
    trainer = by_trl(SFTTrainer, SFTConfig, base, EXAMPLES, tmp_path / "trl", assistant_only_loss=True)
    result = own(base, tmp_path / "own", EXAMPLES, learning_rate=1e-3, arguments=SAME)
    assert [point[1] for point in result["curve"]] == pytest.approx(losses_of(trainer), abs=1e-6)
    assert result["labels"]["kind"] == "messages"
    assert result["metrics"].keys() == {"loss", "perplexity", "mean_token_accuracy", "entropy"}
    assert result["metrics"]["loss"] < result["curve"][0][1]
    weights = load_file(tmp_path / "own" / "model" / "model.safetensors")
    assert (tmp_path / "own" / "model" / "chat_template.jinja").read_text() == MARKED_TEMPLATE
    for name, value in trainer.model.state_dict().items():
        if name in weights:
            assert weights[name] == pytest.approx(value.numpy(), abs=1e-6), name


def test_preferences_are_learned_with_the_losses_of_trls_own_trainer(base: Path, tmp_path: Path) -> None:
    trainer = by_trl(DPOTrainer, DPOConfig, base, PREFERENCES, tmp_path / "trl", beta=0.5)
    result = own(base, tmp_path / "own", PREFERENCES, learning_rate=1e-3, arguments=SAME | {"beta": 0.5})
    assert [point[1] for point in result["curve"]] == pytest.approx(losses_of(trainer), abs=1e-6)
    margins = [entry["rewards/margins"] for entry in result["evaluations"]]
    assert margins == sorted(margins) and margins[0] > 0
    assert result["metrics"]["rewards/accuracies"] == 1.0
    card = (tmp_path / "own" / "model" / "README.md").read_text()
    assert "learned: preferences" in card and "* beta: 0.5" in card and "trl" in card


@pytest.mark.parametrize(("options", "rate"), [({}, 1e-6), ({"lora": True}, 5e-6), ({"learning_rate": 0.5}, 0.5)])
def test_preferences_are_learned_slowly_unless_the_job_says_otherwise(
    options: dict[str, Any], rate: float, base: Path, tmp_path: Path
) -> None:
    config = make_run_config(tmp_path, "text-generation", base, PREFERENCES, **options)
    assert build_training_arguments(config, preferences(config.options), metric=None).learning_rate == rate


def test_texts_are_preferred_as_trl_does_and_by_adapters_alone(base: Path, tmp_path: Path) -> None:
    texts = [
        {"prompt": "Where is Emil?", "chosen": " in Seoul", "rejected": " a cat"},
        {"prompt": "Is it old?", "chosen": " it is old", "rejected": " the cat"},
    ]
    trainer = by_trl(DPOTrainer, DPOConfig, base, texts, tmp_path / "trl")
    result = own(base, tmp_path / "own", texts, learning_rate=1e-3, arguments=SAME)
    assert [point[1] for point in result["curve"]] == pytest.approx(losses_of(trainer), abs=1e-6)
    result = own(base, tmp_path / "lora", texts, learning_rate=1e-2, lora=True, lora_dropout=0.0, epochs=6)
    assert result["metrics"]["rewards/margins"] > 0.1
    before, after = (load_file(path / "model.safetensors") for path in (base, tmp_path / "lora" / "model"))
    assert before.keys() == after.keys()
    layer = "model.layers.0.self_attn.q_proj.weight"
    assert abs(before[layer] - after[layer]).max() > 1e-4
    assert (before["model.embed_tokens.weight"] == after["model.embed_tokens.weight"]).all()


@pytest.mark.parametrize(("examples", "lora"), [(EXAMPLES, True), (PREFERENCES, False), (PREFERENCES, True)])
def test_a_run_resumed_from_a_checkpoint_ends_the_same(
    base: Path, tmp_path: Path, examples: Sequence[Any], lora: bool
) -> None:
    options = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-2, "lora": lora}
    config = make_run_config(tmp_path / "1-1-a", "text-generation", base, examples, examples, **options)
    first = train_here(config)
    again = make_run_config(tmp_path / "1-2-b", "text-generation", base, examples, examples, **options)
    result = train_here(replace(again, checkpoint=f"{config.work_dir}/checkpoint-2"))
    assert result["steps"] == 4
    assert result["metrics"] == pytest.approx(first["metrics"])
    expected, found = (load_file(one.model_dir / "model.safetensors") for one in (config, again))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_adapters_stored_alone_make_the_model_that_was_trained(base: Path, tmp_path: Path) -> None:
    options = {"lora": True, "lora_dropout": 0.0, "learning_rate": 1e-2}
    for name, merge in (("merged", True), ("alone", False)):
        own(base, tmp_path / name, PREFERENCES, **options, merge=merge)
    alone = tmp_path / "alone" / "model"
    assert not (alone / "model.safetensors").exists()
    assert json.loads((alone / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert "library_name: peft" in (alone / "README.md").read_text()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), alone)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-4)
    # Training goes on from an adapter, merged into its base, but not to an adapter of the adapter.
    config = make_run_config(tmp_path / "more", "text-generation", base, EXAMPLES, epochs=1, batch_size=4)
    config = replace(config, load=LoadOptions(adapter=str(alone)))
    expected = make_run_config(tmp_path / "same", "text-generation", tmp_path / "merged" / "model", EXAMPLES, epochs=1,
                               batch_size=4)  # fmt: skip
    losses = [train_here(one)["curve"][0][1] for one in (config, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    with pytest.raises(ModelError, match="--no-merge: the base model is an adapter"):
        train_here(replace(config, options=replace(config.options, lora=True, merge=False)))


@pytest.mark.parametrize("kind", ["messages", "preferences"])
def test_without_trl_it_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "workers.training.trainer.trl_trainers", raising=False)
    with pytest.raises(WorkerError, match=r"needs TRL .*Install it: .*worker,trl") as caught:
        CONVERSATION_RECIPES[kind].trainer(TrainingOptions())
    assert caught.value.code == "missing_library"


def test_preferences_need_a_model_that_writes_already(base: Path, tmp_path: Path) -> None:
    from transformers import LlamaModel

    headless = tmp_path / "headless"
    LlamaModel.from_pretrained(base).save_pretrained(headless)
    AutoTokenizer.from_pretrained(base).save_pretrained(headless)
    with pytest.raises(ModelError, match=r"lm_head\.weight") as caught:
        own(headless, tmp_path / "own", PREFERENCES)
    assert caught.value.code == "missing_weights"
