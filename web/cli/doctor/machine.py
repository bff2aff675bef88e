"""Checks this machine for `lictor doctor`: push, address and limits."""

from __future__ import annotations

import http.client
import resource
import socket
from collections.abc import Iterator

from discovery.registry.check_result import CheckResult, fail, ok, warn
from web.settings import UNIX, Settings

_LIMIT = 3.0
# As much as is read of what may be no answer of Lictor's, in bytes.
_ENOUGH = 4096
# What a process holds open besides the connections to modules: database, Consul, logs, clients.
_OTHER_FILES = 200
_COMFORTABLE_FILES = 4096


def check_machine(settings: Settings) -> Iterator[CheckResult]:
    if "push" in settings.registries:
        yield _push(settings)
    yield _web_server(settings)
    yield _open_files(settings)


def _push(settings: Settings) -> CheckResult:
    from web.push_auth import TokenFile

    if settings.push_token_file is not None:
        if fault := TokenFile(settings.push_token_file).read().fault:
            return fail("push", fault, "put one token of letters and digits alone into the file")
        return ok("push", f"is taken from whoever has the token in {settings.push_token_file}")
    if settings.is_loopback:
        return ok("push", "is taken from this machine")
    told = f"is refused: {settings.bind} can be reached by others, and no token is set"
    return warn("push", told, "set LICTOR_PUSH_TOKEN_FILE, or leave push out of LICTOR_REGISTRIES")


def _web_server(settings: Settings) -> CheckResult:
    connection = _connection(settings)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        server = answer.getheader("Content-Type", "")
        answer.read(_ENOUGH)
    except (ConnectionRefusedError, FileNotFoundError):
        return warn("web server", f"nobody listens on {settings.bind}", "run `lictor serve` or `lictor up`")
    except (OSError, http.client.HTTPException) as exc:
        told = f"{settings.bind} does not answer: {exc or type(exc).__name__}"
        return fail("web server", told, "see what listens there, or choose another LICTOR_BIND")
    finally:
        connection.close()
    if answer.status == http.client.OK and "json" in server:
        return ok("web server", f"{settings.url} is ready")
    told = f"{settings.url}/readyz answers {answer.status}"
    return fail("web server", told, "see its log if it is Lictor; if not, choose another LICTOR_BIND")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_LIMIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_LIMIT)
        self.sock.connect(self._path)


def _connection(settings: Settings) -> http.client.HTTPConnection:
    if settings.host_port is None:
        return _UnixConnection(settings.bind.removeprefix(UNIX))
    return http.client.HTTPConnection(settings.url.removeprefix("http://"), timeout=_LIMIT)


def _open_files(settings: Settings) -> CheckResult:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return ok("open files", "are not limited")
    needed = settings.fetch_concurrency + _OTHER_FILES
    told = f"{limit} are allowed, {needed} are needed by the synchronizer"
    mend = f"raise it: ulimit -n {_COMFORTABLE_FILES}, or LimitNOFILE={_COMFORTABLE_FILES} for systemd"
    if limit < needed:
        return fail("open files", told, mend)
    return (
        warn("open files", told, mend)
        if limit < _COMFORTABLE_FILES and limit < most
        else ok("open files", told)
    )
