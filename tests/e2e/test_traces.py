"""Traces: one from the command that submits to the batches on the device; nothing at all where nobody asks for them."""

import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from common.jobs import JobSpec
from common.queue.jobs import JobStore
from tests.support.processes import ROOT, Shell, Workers

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")

from tests.support.otlp_receiver import running_receiver

PRODUCER, CONSUMER = 4, 5


def python(code: str, environ: dict[str, str]) -> str:
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_is_one_trace_from_the_command_to_its_batches(
    start_workers: Callable[..., Workers], shell: Shell, store: JobStore, tmp_path: Path
) -> None:
    with running_receiver() as receiver:
        otel = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=abc",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # so that all is sent at the end, and must be
        }
        worker = start_workers(**otel)
        (tmp_path / "lines.txt").write_text("".join(f"a secret line {number}\n" for number in range(6)))
        arguments = ["submit", "--task", "test-echo", "--chunk-size", "4", "-p", "batch=2", str(tmp_path / "lines.txt")]
        code = f"from producer.cli.main import main; main({arguments!r})"
        job = python(code, shell.environ | otel).strip()
        shell.run("wait", job)
        broken = shell.submit("--task", "test-load", "-p", "load_error=no", str(tmp_path / "lines.txt"))
        shell.run("wait", broken, status=1)
        told = worker.device().environ()
        assert worker.stop() == 0

        [submit] = receiver.named("hugqueue.submit")
        assert (submit.parent, submit.kind, submit.failed) == ("", PRODUCER, False)
        assert (store.job(job).spec.traceparent or "").startswith(f"00-{submit.trace}-{submit.id}-")
        spans = [span for span in receiver.spans if span.trace == submit.trace]
        chunks = {span.id: span for span in spans if span.name == "hugqueue.chunk"}
        assert {(span.parent, span.kind) for span in chunks.values()} == {(submit.id, CONSUMER)}
        assert sorted(span.attributes["messaging.batch.message_count"] for span in chunks.values()) == [2, 4]
        inside = [span for span in spans if span.name not in ("hugqueue.submit", "hugqueue.chunk")]
        names = Counter(span.name for span in inside)
        assert names == {"hugqueue.prepare": 2, "hugqueue.batch": 3, "hugqueue.commit": 2}
        assert {span.attributes["messaging.batch.message_count"] for span in receiver.named("hugqueue.batch")} == {2}
        for span in inside:
            chunk = chunks[span.parent]
            assert chunk.begin <= span.begin <= span.end <= chunk.end
        for span in (submit, *chunks.values()):
            assert span.attributes["hugqueue.job.id"] == job and span.attributes["hugqueue.task"] == "test-echo"
            assert span.attributes["messaging.destination.name"] == "any"
            assert span.resource["service.name"] == "hugqueue"
            assert span.resource["deployment.environment.name"] == "test"

        [failed] = [span for span in receiver.spans if span.trace != submit.trace]
        assert failed.name == "hugqueue.chunk" and failed.failed
        assert failed.attributes["error.type"] == "TicketFailed" and failed.parent == ""  # its command was not traced
        assert not any(b"secret line" in body for body in receiver.bodies)
        assert all(headers["api-key"] == "abc" for headers in receiver.headers)
        assert "OTEL_EXPORTER_OTLP_HEADERS" not in told and told["OTEL_EXPORTER_OTLP_ENDPOINT"] == receiver.url


# redis-py imports what it finds of OpenTelemetry's metrics by itself.
LIST = """
import sys
from producer.cli.main import main
main(["jobs"], standalone_mode=False)
from common.tracing import span
with span("x", {}) as found:
    assert found.traceparent is None
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))])
"""


@pytest.mark.parametrize(
    "otel",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "console"},
    ],
)
def test_nothing_is_imported_if_nobody_asks_for_traces(otel: dict[str, str], shell: Shell) -> None:
    assert python(LIST, shell.environ | otel).splitlines()[-1] == "[]"


OWN_PROVIDER = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from common.tracing import span
exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
with trace.get_tracer("program").start_as_current_span("request"), span("inner", {}) as inner:
    assert inner.recording and inner.traceparent
inner, request = exporter.get_finished_spans()
assert inner.parent.span_id == request.context.span_id
"""


def test_the_provider_that_a_program_has_set_up_is_used_without_any_variable(environ: dict[str, str]) -> None:
    python(OWN_PROVIDER, environ)


def test_a_silent_receiver_does_not_hold_back_the_end(environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        command = [sys.executable, "-P", "-c", "from common.tracing import span\nwith span('x', {}): pass"]
        done = subprocess.run(
            command, env=environ | otel, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "the receiver of traces does not answer: the last spans are lost\n")


def test_without_the_library_jobs_are_submitted_all_the_same(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a\n")
    arguments = ["submit", "--task", "test-echo", str(tmp_path / "lines.txt")]
    code = f"import sys; sys.modules['opentelemetry'] = None; from producer.cli.main import main; main({arguments!r})"
    assert len(python(code, shell.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}).strip()) == 12


@pytest.mark.parametrize("text", ["01-" + "0" * 32 + "-" + "0" * 16 + "-01", "00-abc-def-01", "x\n", 7])
def test_a_forged_context_is_refused(text: object) -> None:
    spec = JobSpec("0" * 12, "fill-mask", traceparent=text)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="traceparent"):
        JobSpec.decode(spec.encode())
