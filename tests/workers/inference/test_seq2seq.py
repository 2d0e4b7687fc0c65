"""The runner for encoder-decoder models says what the model says when it is called by hand, one text at a time."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from common.errors import Cancelled, ModelError
from tests.support.tiny_models import RecordingMonitor
from tests.support.tiny_seq2seq import TEXTS, by_hand, make_bart, make_marian, make_mbart, make_t5
from workers.inference.tasks.runners import find_runner
from workers.inference.tasks.seq2seq import Seq2SeqRunner


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    return make_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def mbart(tmp_path_factory) -> Path:
    return make_mbart(tmp_path_factory.mktemp("mbart"))


@pytest.fixture(scope="module")
def bart(tmp_path_factory) -> Path:
    return make_bart(tmp_path_factory.mktemp("bart"))


def runner_of(task: str, directory: Path) -> Seq2SeqRunner:
    return Seq2SeqRunner(task, directory, "cpu")


def said(task: str, directory: Path, texts=TEXTS, **params) -> list:
    outcomes = runner_of(task, directory).run(texts, params, RecordingMonitor())
    assert [outcome.failure for outcome in outcomes] == [None] * len(texts)
    return [outcome.output for outcome in outcomes]


def objects(key: str, texts: list[str]) -> list:
    return [[{key: text}] for text in texts]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_says_what_its_texts_say_one_by_one(t5, beams):
    expected = by_hand(t5, TEXTS, max_new_tokens=20, num_beams=beams)
    ours = said("text2text-generation", t5, max_new_tokens=20, num_beams=beams)
    assert ours == objects("generated_text", expected)
    assert len(set(expected)) > 4


def test_a_plain_translation_takes_the_models_first_pair_of_languages(t5):
    expected = by_hand(t5, TEXTS, "translate English to German: ", max_length=14, num_beams=4, early_stopping=True)
    assert said("translation", t5) == objects("translation_text", expected)


@pytest.mark.parametrize(
    ("task", "params"),
    [("translation_en_to_fr", {}), ("translation", {"src_lang": "en", "tgt_lang": "fr"})],
)
def test_named_languages_choose_prefix_and_settings(t5, task, params):
    expected = by_hand(t5, TEXTS, "translate English to French: ", max_length=14, num_beams=2, early_stopping=True)
    assert said(task, t5, **params) == objects("translation_text", expected)


def test_a_summary_takes_prefix_and_settings_of_its_task(t5):
    settings = {"max_length": 12, "min_length": 4, "num_beams": 4, "early_stopping": True}
    expected = by_hand(t5, TEXTS, "summarize: ", **settings, length_penalty=2.0, no_repeat_ngram_size=3)
    assert said("summarization", t5) == objects("summary_text", expected)


def test_the_jobs_parameters_win_over_the_tasks(t5):
    expected = by_hand(t5, TEXTS, "translate English to German: ", max_new_tokens=5, early_stopping=True, num_beams=2)
    assert said("translation", t5, max_new_tokens=5, num_beams=2) == objects("translation_text", expected)


def test_the_jobs_max_length_counts_the_first_token(bart):
    expected = by_hand(bart, TEXTS, max_length=7, num_beams=4)
    assert said("summarization", bart, max_length=7) == objects("summary_text", expected)


def test_without_settings_there_are_four_beams_and_256_new_tokens(tmp_path):
    directory = make_t5(tmp_path, task_params={})
    expected = by_hand(directory, TEXTS[:1], max_new_tokens=256, num_beams=4)
    assert said("text2text-generation", directory, TEXTS[:1]) == objects("generated_text", expected)


def test_codes_of_languages_go_to_the_tokenizer_and_to_the_first_token(mbart):
    korean = AutoTokenizer.from_pretrained(mbart).convert_tokens_to_ids("ko_KR")
    expected = by_hand(mbart, TEXTS, src_lang="fr_XX", forced_bos_token_id=korean, max_length=12, num_beams=3)
    ours = said("translation", mbart, src_lang="fr_XX", tgt_lang="ko_KR")
    assert ours == objects("translation_text", expected)
    assert said("translation_fr_to_ko", mbart) == ours
    assert said("translation_fr_to_de", mbart) != ours


def test_a_tokenizer_written_in_python_is_served_too(tmp_path):
    pytest.importorskip("sentencepiece", reason="sentencepiece, which Marian's tokenizer needs, is not installed")
    directory = make_marian(tmp_path)
    expected = by_hand(directory, TEXTS, prefix=">>kor<< ")
    assert said("translation", directory, tgt_lang="kor") == objects("translation_text", expected)
    assert said("translation_en_to_kor", directory) == objects("translation_text", expected)
    assert expected != by_hand(directory, TEXTS)
    outcomes = runner_of("translation", directory).run(["A house", "The house is big. " * 40], {}, RecordingMonitor())
    assert [outcome.truncated for outcome in outcomes] == [False, True]
    with pytest.raises(ModelError, match="fra"):
        runner_of("translation", directory).run(TEXTS, {"tgt_lang": "fre"}, RecordingMonitor())


def test_a_runner_that_changed_languages_can_change_back(mbart):
    runner = runner_of("translation", mbart)
    jobs = [{"src_lang": "fr_XX", "tgt_lang": "ko_KR"}, {"src_lang": "de_DE", "tgt_lang": "en_XX"}]
    first, second, third = (runner.run(TEXTS, jobs[number], RecordingMonitor()) for number in (0, 1, 0))
    assert first == third
    assert first != second


@pytest.mark.parametrize(
    ("task", "params", "message"),
    [
        ("translation", {}, "src_lang= and -p tgt_lang="),
        ("translation", {"src_lang": "en_XX", "tgt_lang": "ko_KO"}, "Did you mean ko_KR"),
        ("translation_xx_to_ko", {}, "no language 'xx'"),
    ],
)
def test_a_language_that_the_model_lacks_is_refused(mbart, task, params, message):
    with pytest.raises(ModelError, match=message) as caught:
        runner_of(task, mbart).run(TEXTS, params, RecordingMonitor())
    assert caught.value.code == "bad_param"


@pytest.mark.parametrize(
    ("task", "params", "message"),
    [
        ("translation_en_to_ko", {}, "translation_en_to_fr"),
        ("translation", {"max_new_token": 5}, "Did you mean max_new_tokens"),
        ("translation", {"num_beams": "four"}, "whole number"),
        ("translation", {"num_beams": 1, "num_return_sequences": 2}, "cannot be combined"),
        ("translation", {"return_dict_in_generate": True}, "no parameter"),
        ("summarization", {"src_lang": "en"}, "no parameter"),
        ("summarization", {"do_sample": True, "num_beams": 2, "seed": 1}, "num_beams=1"),
    ],
)
def test_a_wrong_parameter_is_refused_before_any_record(t5, task, params, message):
    monitor = RecordingMonitor()
    with pytest.raises(ModelError, match=message) as caught:
        runner_of(task, t5).run(TEXTS, params, monitor)
    assert caught.value.code == "bad_param"
    assert monitor.batches == []


def test_languages_are_refused_where_the_model_has_one_pair(bart):
    assert said("translation_en_to_ko", bart, TEXTS[:1], max_new_tokens=3)
    with pytest.raises(ModelError, match="one pair of languages"):
        runner_of("translation", bart).run(TEXTS, {"tgt_lang": "ko"}, RecordingMonitor())


def test_the_default_number_of_new_tokens_ends_with_the_positions(bart):
    expected = by_hand(bart, TEXTS[:3], max_new_tokens=48, num_beams=4)
    assert said("summarization", bart, TEXTS[:3]) == objects("summary_text", expected)


def test_more_new_tokens_than_positions_are_refused(bart):
    with pytest.raises(ModelError, match="must be at most 48"):
        runner_of("summarization", bart).run(TEXTS, {"max_new_tokens": 100}, RecordingMonitor())


def test_a_long_text_is_cut_and_its_outcome_says_so(t5, bart):
    for directory, length in ((t5, 60), (bart, 48)):
        runner = runner_of("text2text-generation", directory)
        texts = ["A house", "The house is big. " * 40]
        short, long = runner.run(texts, {"max_new_tokens": 8, "num_beams": 1}, RecordingMonitor())
        assert (short.truncated, long.truncated) == (False, True), length
        expected = by_hand(directory, texts, max_new_tokens=8, num_beams=1)
        assert [short.output, long.output] == objects("generated_text", expected)


def test_without_truncation_a_text_runs_whole_or_fails_alone(t5, bart):
    texts = ["A house", "The house is big. " * 40, "ok"]
    params = {"max_new_tokens": 8, "truncation": False}
    outcomes = runner_of("text2text-generation", bart).run(texts, params, RecordingMonitor())
    assert [outcome.failure and outcome.failure.code for outcome in outcomes] == [None, "too_long", None]
    whole = runner_of("text2text-generation", t5).run(texts, params, RecordingMonitor())
    cut = runner_of("text2text-generation", t5).run(texts, {"max_new_tokens": 8}, RecordingMonitor())
    assert [outcome.truncated for outcome in whole] == [False] * 3
    assert whole[1].output != cut[1].output


def test_bad_records_fail_alone_at_their_position(t5):
    inputs = ["A house", "", ["a list"], "half \ud83d", "ok"]
    outcomes = runner_of("summarization", t5).run(inputs, {}, RecordingMonitor())
    codes = [outcome.failure and outcome.failure.code for outcome in outcomes]
    assert codes == [None, "empty_text", "wrong_type", "bad_text", None]
    assert [outcomes[0].output, outcomes[4].output] == said("summarization", t5, ["A house", "ok"])


def test_several_sequences_come_as_a_list_for_each_text(t5):
    ours = said("text2text-generation", t5, num_beams=3, num_return_sequences=3, max_new_tokens=6)
    assert [len(answers) for answers in ours] == [3] * len(TEXTS)
    best = by_hand(t5, TEXTS, num_beams=3, max_new_tokens=6)
    assert [answers[0]["generated_text"] for answers in ours] == best


def test_a_sampled_text_depends_only_on_seed_and_record(t5):
    params = {"do_sample": True, "seed": 7, "max_new_tokens": 12, "temperature": 3.0}
    together = said("text2text-generation", t5, **params)
    alone = [said("text2text-generation", t5, [text], **params)[0] for text in reversed(TEXTS)]
    assert together == alone[::-1]
    assert together != said("text2text-generation", t5, **{**params, "seed": 8})


def test_penalties_on_the_encoders_words_do_not_see_padding(t5):
    params = {"max_new_tokens": 10, "num_beams": 1, "encoder_repetition_penalty": 3.0}
    expected = by_hand(t5, TEXTS, **params)
    assert said("text2text-generation", t5, **params) == objects("generated_text", expected)


def test_a_stop_is_obeyed_within_the_generation(t5):
    monitor = RecordingMonitor(cancel_after=3)
    with pytest.raises(Cancelled):
        runner_of("text2text-generation", t5).run(TEXTS, {"max_new_tokens": 50, "min_new_tokens": 50}, monitor)
    assert monitor.ticks == 4
    assert len(monitor.batches) == 1


@pytest.mark.parametrize("task", ["translation", "translation_en_to_fr", "summarization", "text2text-generation"])
def test_the_table_knows_the_runner(task):
    assert find_runner(task) is Seq2SeqRunner
