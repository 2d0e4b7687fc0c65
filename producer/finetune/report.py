"""Report of a fine-tune job: one self-contained HTML file with the curves as SVG."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template

from common.durations import format_duration
from common.errors import UsageError
from common.jobs import Job
from common.records import Json
from common.storage.atomic import AtomicFile, write_errors
from producer.finetune.svg_charts import Series, line_chart, shaded_table
from producer.job_handle import JobHandle
from producer.outputs.formats import check_writable

#: Labels that are listed.
_MAX_LABELS = 50
#: By the task, the library that loads its models, and how; by default transformers' pipeline.
_IN_PROGRAMS = {
    "embedding": ("sentence-transformers", 'SentenceTransformer("DIRECTORY").encode(texts)'),
    "rerank": ("sentence-transformers", 'CrossEncoder("DIRECTORY").rank(query, documents)'),
}
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #222; --page: #fff; --faint: #666; --best: #e8f0fe; --box: #f4f5f7; }
@media (prefers-color-scheme: dark) {
:root { --ink: #e4e6eb; --page: #16181d; --faint: #9aa0aa; --best: #23324d; --box: #22252c; }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
body { color: var(--ink); background: var(--page); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
section { overflow-x: auto; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
th.n { text-align: right; padding: .3rem .7rem; } tr.best { background: var(--best); font-weight: bold; }
td.n { text-align: right; font-variant-numeric: tabular-nums; padding: .3rem .7rem; }
pre { background: var(--box); padding: .7rem 1rem; overflow-x: auto; border-radius: .3rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; } .figures div { min-width: 7rem; }
.figures b { display: block; font-size: 1.4rem; } svg { max-width: 100%; height: auto; }
footer, .date { color: var(--faint); } footer { margin-top: 2rem; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="date">$date</p>
<p>$summary</p>
<div class="figures">$figures</div>
$sections
<footer>Written by hugqueue from job $job.</footer>
</body>
</html>
""")


def make_finetune_report(handle: JobHandle) -> str:
    """Return the page about a completed fine-tune job.

    Raises:
        UsageError: The job is not a fine-tune job, or not completed.
    """
    job = handle.state
    if job.spec.training is None:
        raise UsageError(f"Job {job.id} is not a fine-tune job: only those have a report.")
    rows = [row for row in handle.rows() if row.outcome is not None and row.outcome.output]
    if not rows or rows[0].outcome is None:
        raise UsageError(f"Job {job.id} is {job.status}: only completed jobs have a report.")
    return render(job, rows[0].outcome.output)


def write_page(path: Path, page: str) -> None:
    """Write the file atomically.

    Raises:
        UsageError: It cannot be written there.
        HugqueueError: The disk is full or fails.
    """
    check_writable(path)
    with write_errors(path), AtomicFile(path) as file:
        file.stream.write(page.encode())


def render(job: Job, result: Mapping[str, Json]) -> str:
    """Return the page for the result of a job."""
    counts = result["examples"]
    summary = (
        f"{escape(result['base_model'])}, fine-tuned for {escape(result['task'])} on {counts['train']:,} examples"
        f" ({counts['eval']:,} to evaluate with): {result['steps']:,} steps, {result['epochs']:g} epochs,"
        f" {format_duration(result['seconds'])} on {escape(result['device'])}."
        + (f" The model is that of step {best:,}." if (best := result.get("best_step")) else "")
    )
    sections = [
        _notes(result["notes"]),
        _section("How to use it", _use(job)),
        _section("Loss", _losses(result)),
        _section("Learning rate", line_chart([Series("learning rate", [(p[0], p[2]) for p in result["curve"]])])),
        _section("Evaluations", _evaluations(result["evaluations"], result.get("best_step"))),
        _section("Classes", _classes(result.get("classes", ()))),
        _section("Which label was taken for which", _confusion(result)),
        _section("What it got most wrong", _worst(result.get("worst", ()))),
        _section("Data", _table(_data(result))),
        _section("Arguments", _table({**result["options"], **result["arguments"]})),
        _section("Versions", _table(result["versions"])),
    ]
    return _PAGE.substitute(
        title=escape(job.spec.name or f"Fine-tune job {job.id}"),
        date=datetime.fromtimestamp(result["finished_at"]).astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        summary=summary,
        figures="".join(_figure(name, value) for name, value in result["metrics"].items()),
        sections="\n".join(sections),
        job=escape(job.id),
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _figure(name: str, value: Json) -> str:
    return f"<div><b>{_shown(value)}</b>{escape(name)}</div>"


def _notes(notes: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in notes)}</ul>" if notes else ""


def _losses(result: Mapping[str, Json]) -> str:
    series = [Series("training", [(point[0], point[1]) for point in result["curve"]])]
    if result["evaluations"]:
        series.append(Series("evaluation", [(entry["step"], entry["loss"]) for entry in result["evaluations"]]))
    return line_chart(series)


def _evaluations(entries: Sequence[Mapping[str, Json]], best: int | None) -> str:
    if not entries:
        return ""
    names = [name for name in entries[0] if name not in ("step", "epoch", "loss")]
    shares = [name for name in names if all(0 <= (entry[name] or 0) <= 1 for entry in entries)]
    chart = line_chart([Series(name, [(entry["step"], entry[name]) for entry in entries]) for name in shares])
    head = "".join(f"<th class=n>{escape(name)}</th>" for name in entries[0])
    rows = "".join(
        f"<tr{' class=best' if entry['step'] == best else ''}>"
        f"{''.join(f'<td class=n>{_shown(value)}</td>' for value in entry.values())}</tr>"
        for entry in entries
    )
    return f"{chart}<table><tr>{head}</tr>{rows}</table>"


def _use(job: Job) -> str:
    commands = (
        f"producer submit --task {job.spec.task} --model job:{job.id} FILE",
        f"producer models export job:{job.id} DIRECTORY",
    )
    library, program = _IN_PROGRAMS.get(
        job.spec.task, ("transformers", f'pipeline("{job.spec.task}", model="DIRECTORY")')
    )
    words = f"<p>The exported directory loads with {library} as well:</p>"
    return f"<pre>{escape(chr(10).join(commands))}</pre>{words}<pre>{escape(program)}</pre>"


def _classes(classes: Sequence[Mapping[str, Json]]) -> str:
    """Return a row for each class."""
    if not classes:
        return ""
    head = "".join(f"<th class=n>{name}</th>" for name in ("precision", "recall", "F1", "examples"))
    rows = "".join(
        f"<tr><th>{escape(one['name'])}</th>"
        + "".join(f"<td class=n>{_shown(one[name])}</td>" for name in ("precision", "recall", "f1", "support"))
        + "</tr>"
        for one in classes
    )
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def _worst(examples: Sequence[Mapping[str, Json]]) -> str:
    """Return the examples with the highest loss."""
    if not examples:
        return ""
    rows = "".join(
        f"<tr><td>{escape(one['text'])}</td><td>{_shown(one['label'])}</td><td>{_shown(one['predicted'])}</td></tr>"
        for one in examples
    )
    return f"<table><tr><th>text</th><th>label</th><th>predicted</th></tr>{rows}</table>"


def _data(result: Mapping[str, Json]) -> dict[str, Json]:
    counts, names = result["examples"], result["labels"]["names"]
    return {
        "from": ", ".join(result.get("inputs", ())),
        "to learn from": f"{counts['train']:,} examples",
        "to evaluate with": f"{counts['eval']:,} examples" if counts["eval"] else "",
        "labels": ", ".join(names[:_MAX_LABELS])
        + (f" and {len(names) - _MAX_LABELS:,} more" if len(names) > _MAX_LABELS else ""),
    }


def _confusion(result: Mapping[str, Json]) -> str:
    return shaded_table(result["labels"]["names"], result["confusion"]) if result["confusion"] else ""


def _table(values: Mapping[str, Json]) -> str:
    rows = (
        f"<tr><th>{escape(name)}</th><td>{_shown(value)}</td></tr>"
        for name, value in values.items()
        if value not in (None, {}, "")
    )
    return f"<table>{''.join(rows)}</table>"


def _shown(value: Json) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
