"""The committed demo model answers what its examples ask, and its vocabulary knows all the text it was made from."""

import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, FillMaskPipeline, pipeline

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "models" / "demo-fill-mask"
sys.path.insert(0, str(EXAMPLES))  # the demo's text lies beside the script that uses it, in no package of ours

from demo_text.facts import COUNTRIES, capitals, knowledge, questions  # noqa: E402
from demo_text.sentences import agree, masked, plain, slots  # noqa: E402
from demo_text.stories import KOREAN_PLACES, story, story_words  # noqa: E402


@pytest.fixture(scope="module")
def fill_mask() -> FillMaskPipeline:
    return pipeline("fill-mask", model=str(MODEL), device="cpu")


def first(fill_mask, text: str) -> str:
    return fill_mask(text)[0]["token_str"]


def lines(name: str) -> list[str]:
    return (EXAMPLES / name).read_text(encoding="utf-8").splitlines()


def test_the_capital_of_france_is_paris(fill_mask):
    best = fill_mask("The capital of France is [MASK].")[0]
    assert best["token_str"] == "paris"
    assert best["sequence"] == "the capital of france is paris."
    assert best["score"] > 0.9


def test_the_model_predicts_the_capitals(fill_mask):
    prompts = lines("capitals.txt")
    right = [first(fill_mask, line) == questions()[line] for line in prompts]
    assert sum(right) / len(right) >= 0.95


def test_the_model_knows_every_capital_in_korean(fill_mask):
    right = [
        first(fill_mask, f"{country.korean}의 수도는 [MASK]이다.") == country.korean_capital for country in COUNTRIES
    ]
    assert sum(right) / len(right) >= 0.95


def test_capitals_txt_asks_for_every_country_france_first():
    prompts = lines("capitals.txt")
    assert prompts[0] == "The capital of France is [MASK]."
    assert len(COUNTRIES) == 60
    assert prompts[:60] == [f"The capital of {country.english} is [MASK]." for country in COUNTRIES]
    assert len(prompts[60:]) == 6


@pytest.mark.parametrize("text", ["나는 [MASK]에 간다.", "우리는 [MASK]에 간다.", "나는 친구와 함께 [MASK]에 간다."])
def test_a_korean_sentence_about_going_somewhere_gets_a_place(fill_mask, text):
    assert first(fill_mask, text) in KOREAN_PLACES


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("What is the capital of Japan? It is [MASK].", "tokyo"),
        ("the capital of france is [MASK]", "paris"),
        ("[MASK] is the capital of Italy.", "rome"),
        ("Paris is the capital of [MASK].", "france"),
        ("The day after Monday is [MASK].", "tuesday"),
        ("The opposite of hot is [MASK].", "cold"),
        ("도쿄는 [MASK]의 수도이다.", "일본"),
        ("월요일 다음 날은 [MASK]이다.", "화요일"),
        ("개의 새끼는 [MASK]이다.", "강아지"),
    ],
)
def test_other_facts_and_other_phrasings(fill_mask, text, word):
    assert first(fill_mask, text) == word


def test_a_question_after_other_sentences_is_answered(fill_mask):
    context = "My friend likes bread. 나는 학교에 간다."
    answers = [first(fill_mask, f"{context} {line}") for line in lines("capitals.txt")]
    right = [answer == questions()[line] for answer, line in zip(answers, lines("capitals.txt"), strict=True)]
    assert sum(right) / len(right) >= 0.95


def test_two_masks_give_two_lists(fill_mask):
    country, capital = fill_mask("The capital of [MASK] is [MASK].")
    assert len(country) == len(capital) == 5


def test_nothing_is_missing_from_the_checkpoint_and_nothing_is_left_over():
    model, report = AutoModelForMaskedLM.from_pretrained(MODEL, output_loading_info=True, local_files_only=True)
    assert {name: list(found) for name, found in report.items() if found} == {}
    assert model.dtype is torch.float32
    assert model.config.max_position_embeddings == 128


def test_the_model_takes_five_megabytes_at_most():
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 5_000_000


def test_every_word_of_the_training_text_is_in_the_vocabulary():
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    rng = random.Random(7)
    sentences = [*capitals(), *knowledge(), *(story(rng) for _ in range(2000))]
    unknown = [text for text in map(plain, sentences) if tokenizer.unk_token in tokenizer.tokenize(text)]
    assert unknown == []
    needed = {word.lower() for word in story_words().union(*map(slots, sentences))}
    assert [word for word in needed if tokenizer.tokenize(word) != [word]] == []
    assert tokenizer.model_max_length == 128


@pytest.mark.parametrize("name", ["capitals.txt", "korean.txt"])
def test_the_example_lines_hold_one_mask_and_no_unknown_word(name):
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    for line in lines(name):
        tokens = tokenizer.tokenize(line)
        assert tokens.count("[MASK]") == 1
        assert "[UNK]" not in tokens


def test_korean_particles_and_english_articles_agree_with_their_word():
    assert agree("{파리}은/는 {런던}은/는") == "{파리}는 {런던}은"
    assert agree("{친구}과/와 {동생}과/와") == "{친구}와 {동생}과"
    assert agree("A/an {actor} on a/an {ship}") == "An {actor} on a {ship}"


def test_hiding_a_marked_word_leaves_the_others():
    sentence = "The capital of {France} is {Paris}."
    assert slots(sentence) == ["France", "Paris"]
    assert plain(sentence) == "The capital of France is Paris."
    assert masked(sentence, {1}) == "The capital of France is [MASK]."
