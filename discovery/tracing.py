"""Sends OpenTelemetry spans to the endpoint that the environment names.

Without such an endpoint nothing is imported, and `span` does nothing. Everything else about the
export is said by OpenTelemetry's own variables (`OTEL_...`), which its SDK reads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeAlias

from discovery import __version__
from discovery.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

Kind = Literal["internal", "server", "client"]
Value: TypeAlias = str | int | float | bool

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP = "http/protobuf"
_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
# How long a process that ends waits for an endpoint to take the last spans.
_FAREWELL = 0.5

_tracer: Tracer | None = None


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError if traces are wanted and cannot be had."""
    endpoint = _endpoint(environ)
    if endpoint is None:
        return
    faults = []
    if not _is_installed():
        faults.append(
            f"{endpoint}: is set, but OpenTelemetry is not installed: run `pip install 'lictor[otel]'`, "
            "or unset it"
        )
    protocol = next((name for name in _PROTOCOLS if environ.get(name)), None)
    if protocol is not None and environ[protocol] != _HTTP:
        faults.append(f"{protocol}: must be {_HTTP}, the only one that is spoken, or not be set")
    if faults:
        raise ConfigError(faults)


def start(part: str) -> Callable[[], None]:
    """Begins to trace this process, if the environment asks for it; returns what ends that.

    To be called after the last fork: a thread of its own sends the spans. `part` says what of
    Lictor runs here.
    """
    if _endpoint(os.environ) is None:
        return lambda: None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    global _tracer
    attributes: dict[str, Value] = {"service.version": __version__, "lictor.part": part}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = "lictor"
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("lictor", __version__)
    return lambda: _stop(provider)


@contextmanager
def started(part: str) -> Iterator[None]:
    """Traces this process while the context is open; see `start`."""
    end = start(part)
    try:
        yield
    finally:
        end()


def is_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names an endpoint for traces."""
    return _endpoint(environ) is not None


def span(
    name: str,
    kind: Kind = "internal",
    attributes: Mapping[str, Value] | None = None,
    *,
    parent: Mapping[str, str] | None = None,
) -> AbstractContextManager[Traced]:
    """What is done while the context is open; a part of the span that is open around it.

    `parent` are headers of a request, which may name the span of the caller.
    """
    return _NOTHING if _tracer is None else _Open(_tracer, name, kind, attributes, parent)


def headers() -> Sequence[tuple[str, str]]:
    """What a request carries so that its receiver can continue the trace: nothing, or `traceparent`."""
    if _tracer is None:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carried)
    return tuple(carried.items())


class Traced:
    """A span that may be told more; by itself it is none."""

    def tell(self, name: str, value: Value) -> None:
        """Adds an attribute."""

    def rename(self, name: str) -> None: ...

    def fail(self) -> None:
        """It did not go as it should."""

    def __enter__(self) -> Traced:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


_NOTHING = Traced()


class _Open(Traced):
    def __init__(
        self,
        tracer: Tracer,
        name: str,
        kind: Kind,
        attributes: Mapping[str, Value] | None,
        parent: Mapping[str, str] | None,
    ) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._opened: AbstractContextManager[Span] = tracer.start_as_current_span(
            name,
            context=None if parent is None else TraceContextTextMapPropagator().extract(parent),
            kind=SpanKind[kind.upper()],
            attributes=attributes,
        )

    def tell(self, name: str, value: Value) -> None:
        self._span.set_attribute(name, value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR)

    def __enter__(self) -> Traced:
        self._span = self._opened.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)


def _endpoint(environ: Mapping[str, str]) -> str | None:
    """The variable that names the endpoint; None if no traces are wanted."""
    if (
        environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or environ.get("OTEL_TRACES_EXPORTER") == "none"
    ):
        return None
    return next((name for name in _ENDPOINTS if environ.get(name)), None)


def _is_installed() -> bool:
    try:
        return all(find_spec(name) is not None for name in _NEEDED)
    except ModuleNotFoundError:
        return False


def _stop(provider: TracerProvider) -> None:
    """Sends what is left, if the endpoint takes it soon."""
    global _tracer
    _tracer = None
    # A dead endpoint is tried for half a minute, and nobody who ends a process waits for that.
    farewell = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    farewell.start()
    farewell.join(_FAREWELL)
