"""Makes a request of a call to Consul, and of what comes back a result or one of this package's errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, TypeVar

import aiohttp
import httpx

from discovery import tracing
from discovery.consul.call import Call, ConsulReply
from discovery.consul.config import ConsulConfig
from discovery.consul.network_errors import cannot_be_sent, network_fault, retry_after, what_is_late
from discovery.errors import (
    DiscoveryError,
    PermissionDenied,
    RegistryRejected,
    RegistryUnavailable,
    UnknownInstance,
)
from discovery.http.connection_slots import NoneFree
from discovery.http.reloaded_files import ReloadedFiles

T = TypeVar("T")

# All instances of a big cluster are some 5 MB; whatever is far bigger is no answer of Consul's.
MAX_ANSWER_BYTES = 256 * 2**20
_PERMISSION_ADVICE = {403: ": check the token (CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE) and its policies"}

_DOTS = re.compile(r"/\.{1,2}(/|$)")


class TranslatedErrors:
    """What both clients share: how a Call becomes a request, and a reply a result or an error."""

    def __init__(
        self,
        config: ConsulConfig,
        *,
        max_connections: int = 6,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self.config = config
        self._max_connections = max_connections
        self._max_answer_bytes = max_answer_bytes
        self._namespace = [("ns", config.namespace)] if config.namespace else []
        self._token_file = ReloadedFiles(config.read_token, lambda: filter(None, [config.token_file]))
        self._tokens: set[str] = set()

    @property
    def token(self) -> str:
        """The one that the next call carries; empty for none."""
        return self._token_file.get()

    def _headers(self, call: Call[Any]) -> dict[str, str]:
        # Packing costs more than it saves as long as the bytes do not leave the machine.
        headers = {"Accept-Encoding": "identity" if self.config.is_local else "gzip", **call.headers}
        if token := self.token:
            self._tokens.add(token)
            headers["X-Consul-Token"] = token
        return headers

    def _params(self, call: Call[Any]) -> list[tuple[str, str]]:
        return [*call.params, *self._namespace]

    def _refuse_dots(self, call: Call[Any]) -> None:
        if _DOTS.search(call.path):
            # Every client and server on the way would take "/../" out of the path, and so hit
            # another address than the one that is meant.
            raise RegistryRejected(f"{self._name(call)}: Consul cannot be asked for a name of only dots")

    def _name(self, call: Call[Any]) -> str:
        return f"{call.method} {self.config.address}{call.path}"

    def _traced(self, call: Call[Any]) -> AbstractContextManager[object]:
        # What follows is a name, of which there are many.
        kind = "/".join(call.path.split("/")[:4])
        attributes = {"http.request.method": call.method, "url.path": call.path, "peer.service": "consul"}
        return tracing.span(f"consul {call.method} {kind}", "client", attributes)

    @contextmanager
    def _translated(self, call: Call[Any]) -> Iterator[None]:
        """Turns what the network and those who use it raise into this package's errors."""
        try:
            yield
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            aiohttp.ClientError,
            NoneFree,
            OSError,
            ValueError,
        ) as error:
            what, kind = self._diagnosis(call, error)
            raise kind(f"{self._name(call)}: {what}") from error

    def _diagnosis(self, call: Call[Any], error: Exception) -> tuple[str, type[DiscoveryError]]:
        limit = self.config.timeout
        late = what_is_late(error)
        if late == "free":
            return f"all {self._max_connections} connections are in use", RegistryUnavailable
        if late == "connect":
            return f"no connection within {limit:g} s: check CONSUL_HTTP_ADDR", RegistryUnavailable
        if late is not None:
            return f"no answer within {limit + call.hold:g} s", RegistryUnavailable
        if isinstance(error, httpx.InvalidURL | httpx.LocalProtocolError) or cannot_be_sent(error):
            return f"cannot be sent: {error}", RegistryRejected
        return network_fault(error), RegistryUnavailable

    def _result(self, call: Call[T], reply: ConsulReply) -> T:
        """What `call` makes of the reply; raises what it means if it is no good one."""
        if not (200 <= reply.status < 300 or (reply.status == 404 and call.absent is None)):
            self._refuse(call, reply)
        try:
            return call.parse(reply)
        except DiscoveryError as error:
            raise type(error)(f"{self._name(call)}: {self._excerpt(str(error))}") from error.__cause__
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RegistryUnavailable(
                f"{self._name(call)}: this is no answer of Consul's ({self._excerpt(str(error))}): "
                f"{self._excerpt(reply.text)!r}"
            ) from error

    def _refuse(self, call: Call[Any], reply: ConsulReply) -> NoReturn:
        status, text = reply.status, self._excerpt(reply.text)
        told = f"{self._name(call)}: Consul answered {status}{': ' if text else ''}{text}"
        if call.absent is not None and (status == 404 or _tells_of_unknown_check(call, status, text)):
            raise call.absent(told, status=status)
        if status in (401, 403):
            raise PermissionDenied(told + _PERMISSION_ADVICE.get(status, ""), status=status)
        if status in (408, 429) or status >= 500:
            raise RegistryUnavailable(told, retry_after=retry_after(reply.headers), status=status)
        raise RegistryRejected(told + self._advice(reply), status=status)

    def _advice(self, reply: ConsulReply) -> str:
        """What to do about a refusal, if the refusal tells."""
        if 300 <= reply.status < 400:
            target = self._excerpt(reply.headers.get("location", "another address"))
            return f": it redirects to {target}, which is not followed: check CONSUL_HTTP_ADDR"
        if "HTTP request to an HTTPS server" in reply.text:
            return ": set CONSUL_HTTP_SSL=true, or write https:// into CONSUL_HTTP_ADDR"
        if self._namespace and "Namespaces are a Consul Enterprise feature" in reply.text:
            return ": unset CONSUL_NAMESPACE"
        return ""

    def _excerpt(self, text: str) -> str:
        """The beginning of a text from outside, fit for a log line, and without any token that was sent."""
        # Far more than is shown is searched, so that no cut can leave half a token.
        text = text[:4000]
        for token in self._tokens:
            text = text.replace(token, "***")
        line = " ".join(text[:1000].split())
        return line if len(line) <= 200 else line[:200] + "…"


def _tells_of_unknown_check(call: Call[Any], status: int, text: str) -> bool:
    # Older Consuls, 1.8 among them, have no status of its own for a check that they do not know.
    return call.absent is UnknownInstance and status == 500 and "does not have associated TTL" in text
