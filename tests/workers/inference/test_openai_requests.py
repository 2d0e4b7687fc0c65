"""Requests of batch files through the runners of their tasks: what a job's own parameters do to them."""

from pathlib import Path

from common.records import Json
from tests.support import tiny_models
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import RecordingMonitor
from workers.inference.openai.batch_runner import OpenAIBatchRunner


def test_a_prompt_is_answered_alone_whatever_the_job_says_of_chats(tmp_path: Path):
    runner = runner_of("text-generation", tiny_models.causal_gpt2(tmp_path))
    requests = OpenAIBatchRunner(runner, "text-generation", lambda task: (runner, {}), 400)
    options: Json = {"max_new_tokens": 6, "do_sample": False}
    asked: list[Json] = [
        {"prompts": ["i go"], "options": options},
        {"messages": [{"role": "user", "content": "i go"}], "options": options},
    ]
    plain = requests.run(asked, {}, RecordingMonitor())
    told = requests.run(asked, {"continue_final_message": False}, RecordingMonitor())
    assert [one.output for one in told] == [one.output for one in plain]
    assert not plain[0].output["choices"][0]["text"].startswith("i go")
