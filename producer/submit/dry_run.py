"""Dry run of a submit: makes the same checks, reads all inputs, and reports what would be submitted."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice

from common.display_text import one_line, replace_control_chars
from common.errors import HugqueueError, StoreUnavailable, UsageError
from common.json_codec import to_json
from common.records import Failure, Json, Record
from common.template import TEMPLATE_FIELD
from producer.model_check import check_registered
from producer.submit.chunk_source import ChunkContent
from producer.submit.chunking import cut_chunks
from producer.submit.duplicate_ids import warn_of_duplicate_ids
from producer.submit.job_input import JobInput
from producer.submit.plan import SubmitPlan
from producer.submit.upload import Totals, check_size

#: Invalid records that are shown.
_MAX_EXAMPLES = 5
#: Rendered texts that are shown, and their characters.
_MAX_PROMPTS, _MAX_PROMPT_CHARS = 3, 1000
#: Characters of a parameter that are shown.
_MAX_PARAM_CHARS = 300


@dataclass(frozen=True, slots=True)
class DryRunReport:
    """What a submit would do."""

    task: str
    model: str | None
    revision: str | None
    queue: str
    chunk_records: int  #: in the largest chunk
    records: int
    chunks: int
    bytes: int  #: of text
    bad: int  #: records that cannot be read
    bad_by_code: Mapping[str, int]  #: by error code, the most frequent first
    bad_examples: tuple[Failure, ...]  #: the first of them
    served: bool  #: whether a worker serves the queue, or would be started
    who_serves: str  #: the same in words
    params: Mapping[str, Json] = field(default_factory=dict)  #: of the task, with those that are set by default
    prompts: tuple[str, ...] = ()  #: the texts that a template makes of the first records, shortened

    def as_dict(self) -> dict[str, Json]:
        """Return the JSON form."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the report as text."""
        lines = {
            "task": self.task,
            "model": (self.model or "none") + (f" @ {self.revision}" if self.revision else ""),
            "params": ", ".join(f"{name}={_shown(value)}" for name, value in self.params.items()),
            "records": f"{self.records:,}",
            "chunks": f"{self.chunks:,} of up to {self.chunk_records:,} records",
            "bytes": f"{self.bytes:,} of text",
            "bad": f"{self.bad:,} records that cannot be read" + (f" ({self._codes}), such as:" if self.bad else ""),
        }
        text = [f"{key:<8} {value}" for key, value in lines.items() if value]
        text += [f"         {failure.code}: {failure.message}" for failure in self.bad_examples]
        text += [f"{'prompt':<8} " + prompt.replace("\n", "\n         ") for prompt in self.prompts]
        return replace_control_chars(
            "\n".join([*text, f"{'queue':<8} {self.queue}: {self.who_serves}", "Nothing was submitted."])
        )

    @property
    def _codes(self) -> str:
        return ", ".join(f"{code} {count:,}" for code, count in self.bad_by_code.items())


def _shown(value: Json) -> str:
    return one_line(value if isinstance(value, str) else to_json(value), _MAX_PARAM_CHARS)


def make_dry_run_report(plan: SubmitPlan, notify: Callable[[str], None]) -> DryRunReport:
    """Return what a submit would do; nothing is written.

    Args:
        plan: What to submit.
        notify: Called with each warning of `submit`.

    Raises:
        UsageError: the input cannot be read to its end, or is larger than one job may be.
    """
    if isinstance(plan.inputs, JobInput):
        raise UsageError("--dry-run reads the input, and the results of a job are read by workers. Leave it out.")
    totals = Totals()
    bad: list[Failure] = []
    prompts: list[str] = []
    codes: Counter[str] = Counter()
    largest = 0
    if plan.warning:
        notify(f"Warning: {plan.warning}")
    for chunk, size in cut_chunks(warn_of_duplicate_ids(plan.records(), notify), plan.chunk_plan()):
        totals.add(ChunkContent.of(chunk, size))
        largest = max(largest, len(chunk))
        check_size(totals, plan.settings)
        failures = [record.failure for record in chunk if record.failure]
        codes.update(failure.code for failure in failures)
        bad += failures[: _MAX_EXAMPLES - len(bad)]
        prompts += _prompts(chunk)[: _MAX_PROMPTS - len(prompts)] if plan.template else []
    served, who = _find_workers(plan, notify)
    spec = plan.spec
    return DryRunReport(
        task=spec.task,
        model=spec.model,
        revision=spec.revision,
        queue=spec.queue,
        chunk_records=largest,
        records=totals.records,
        chunks=totals.chunks,
        bytes=totals.bytes,
        bad=totals.bad,
        bad_by_code=dict(codes.most_common()),
        bad_examples=tuple(bad),
        served=served,
        who_serves=who,
        params=spec.shown_params,
        prompts=tuple(prompts),
    )


def _prompts(records: Sequence[Record]) -> list[str]:
    """Return the texts of the first records that have one."""
    inputs = islice((record.input for record in records if record.failure is None), _MAX_PROMPTS)
    texts = (value[TEMPLATE_FIELD] if isinstance(value, dict) else value for value in inputs)
    return [text if len(text) <= _MAX_PROMPT_CHARS else f"{text[: _MAX_PROMPT_CHARS - 1]}…" for text in texts]


def _find_workers(plan: SubmitPlan, notify: Callable[[str], None]) -> tuple[bool, str]:
    """Return whether there is, or would be, a worker for the job, and the same in words.

    `notify` is called with the reasons why Redis may lose the job.

    Raises:
        UsageError: the model is that of a job which has none.
    """
    if plan.settings.embedded:
        from producer.embedded.attach import check_embedded

        try:
            check_embedded(plan.settings)
        except HugqueueError as error:
            return False, str(error)
        check_registered(plan.spec.model, plan.settings)
        return True, "an embedded Redis and worker would be started"
    from producer.predecessors import with_predecessors
    from producer.queue_connection import QueueConnection

    connection = QueueConnection(plan.settings)
    try:
        connection.check()
        for weakness in connection.durability_warnings():
            notify(f"Warning: {weakness}")
        served = connection.serves(plan.spec.queue)
        with_predecessors(connection, plan.spec, plan.after, plan.settings)
    except StoreUnavailable as error:
        return False, str(error)
    return served, "a live worker serves it" if served else "no live worker serves it"
