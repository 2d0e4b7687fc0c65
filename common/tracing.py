"""Traces by OpenTelemetry, where it is installed (`hugqueue[otel]`) and its own variables ask for it.

A job keeps the context of the span in which it was submitted (`JobSpec.traceparent`), so that its chunks belong to the
same trace, on whichever machine they run. Otherwise spans cost nothing, and nothing of OpenTelemetry is imported here.
"""

import atexit
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from common.distribution import installed_version
from common.jobs import JobSpec, short_model
from common.settings import traces_wanted

if TYPE_CHECKING:
    from opentelemetry import trace

logger = logging.getLogger(__name__)

#: Seconds that a process may take to send its last spans.
_FLUSH_SECONDS = 2.0

Value = str | int | float | bool
_lock = threading.Lock()
_tracer: "trace.Tracer | Literal[False] | None" = None


class Span:
    """A span; this one records nothing."""

    recording = False  #: whether what is added to it goes anywhere
    traceparent: str | None = None  #: its context, by the W3C's recommendation Trace Context

    def note(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes: never those of records, nor secrets."""

    def add_child(self, name: str, begin: float, end: float, attributes: Mapping[str, Value]) -> None:
        """Add a span that is over.

        Args:
            name: of the span.
            begin: seconds since the epoch.
            end: likewise.
            attributes: as for `note`.
        """


class _RecordedSpan(Span):
    def __init__(self, span: "trace.Span", tracer: "trace.Tracer") -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._span = span
        self._tracer = tracer
        self.recording = span.is_recording()
        self._context = trace.set_span_in_context(span)
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._context)
        self.traceparent = carrier.get("traceparent")

    def note(self, attributes: Mapping[str, Value]) -> None:
        self._span.set_attributes(attributes)

    def add_child(self, name: str, begin: float, end: float, attributes: Mapping[str, Value]) -> None:
        child = self._tracer.start_span(name, self._context, attributes=attributes, start_time=int(begin * 1e9))
        child.end(int(end * 1e9))


@contextmanager
def span(
    name: str,
    attributes: Mapping[str, Value],
    *,
    kind: Literal["INTERNAL", "PRODUCER", "CONSUMER"] = "INTERNAL",
    parent: str | None = None,
) -> Iterator[Span]:
    """Record the block as a span. If it raises, the span has failed, with the class of the error and no text.

    Args:
        name: of the span.
        attributes: of the span.
        kind: as OpenTelemetry names it.
        parent: the `traceparent` of a span of another process; None: the current span of this thread, if any.
    """
    tracer = _find_tracer()
    if not tracer:
        yield Span()
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    with tracer.start_as_current_span(
        name,
        context,
        kind=trace.SpanKind[kind],
        attributes=attributes,
        record_exception=False,  # its text may be that of a record
        set_status_on_exception=False,
    ) as found:
        try:
            yield _RecordedSpan(found, tracer)
        except BaseException as error:
            found.set_attribute("error.type", type(error).__name__)
            found.set_status(trace.StatusCode.ERROR)
            raise


def current() -> Span:
    """Return the current span of this thread."""
    tracer = _find_tracer()
    if not tracer:
        return Span()
    from opentelemetry import trace

    return _RecordedSpan(trace.get_current_span(), tracer)


def job_attributes(spec: JobSpec, operation: Literal["send", "process"]) -> dict[str, Value]:
    """Return the attributes of a job, by OpenTelemetry's conventions for messaging as far as these reach."""
    found: dict[str, Value] = {
        "messaging.system": "celery",
        "messaging.operation.name": "submit" if operation == "send" else "run",
        "messaging.operation.type": operation,
        "messaging.destination.name": spec.queue,
        "messaging.message.conversation_id": spec.id,
        "hugqueue.job.id": spec.id,
        "hugqueue.task": spec.task,
        "hugqueue.priority": spec.priority,
    }
    return found | ({"hugqueue.model": short_model(spec.model)} if spec.model else {})


def _find_tracer() -> "trace.Tracer | Literal[False]":
    global _tracer  # noqa: PLW0603 - one for each process, made when first needed
    if _tracer is None:
        with _lock:
            if _tracer is None:
                _tracer = _make_tracer() if _has_provider() or (traces_wanted() and _is_installed()) else False
    return _tracer


def _has_provider() -> bool:
    """Whether the program has set up a tracer provider: then it has imported OpenTelemetry already."""
    api = sys.modules.get("opentelemetry.trace")
    return api is not None and not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider)


def _is_installed() -> bool:
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.sdk") is not None


def _make_tracer() -> "trace.Tracer | Literal[False]":
    """Return a tracer of the provider that the program has, or of one that sends by OTLP over HTTP."""
    from opentelemetry import trace

    if not _has_provider():
        try:
            trace.set_tracer_provider(_make_provider())
        except (ImportError, ValueError) as error:
            logger.warning("no traces: OpenTelemetry cannot be set up: %s", error)
            return False
    return trace.get_tracer("hugqueue", installed_version("hugqueue") or None)


def _make_provider() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "hugqueue"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    atexit.register(_flush, provider)
    library = logging.getLogger("opentelemetry")
    if library.level == logging.NOTSET:
        library.setLevel(logging.ERROR)  # a receiver that is away is told of once, not at each try
    return provider


def _flush(provider: Any) -> None:
    """Send the last spans: the process is about to end."""
    # No `shutdown`, which waits for a silent receiver for ten seconds.
    # In a thread, as `force_flush` does not heed its own time limit. All threads are daemons, and end with the process.
    sender = threading.Thread(target=provider.force_flush, name="traces", daemon=True)
    sender.start()
    sender.join(_FLUSH_SECONDS)
    if sender.is_alive():
        logger.warning("the receiver of traces does not answer: the last spans are lost")
