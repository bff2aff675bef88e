"""Answers what is known on the loop itself: gunicorn's worker in, one that needs no thread for it out.

Where a connection is kept, a request whose very bytes came before (`known_requests`), and whose
answer is kept at the index that the database has now, is answered between two looks at the sockets:
neither gunicorn's parser nor a thread sees it. Everything else goes gunicorn's way. What may take
long, a thread does for all who need it: makes an answer, looks at the index where that means a wait.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from discovery import tracing
from web.known_requests import LONGEST, KnownRequest, KnownRequests, Wire
from web.patient_worker import PatientWorker, can_wait
from web.response_cache.read_cache import REPEAT, Repeat
from web.slow_readers import SLICE, SlowReaders
from web.telemetry import request_metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# How long, in seconds, one waits for what another one has made; then a thread makes it for each.
_PATIENCE = 5.0
# So many are answered before others have their turn.
_AT_ONCE = 64


class _Repeatable(NamedTuple):
    """What a thread tells of a request, in place of True, if it is worth remembering."""

    head: bytes
    repeat: Repeat


class _Request(NamedTuple):
    """One that is known, as it came over its connection."""

    conn: Any
    content: bytes
    known: KnownRequest
    begun: float
    # Whether it waited already for an answer to be made.
    has_waited: bool = False


class _Awaited(NamedTuple):
    """Those who wait for an answer that is being made, and until when they do."""

    until: float
    requests: list[_Request]


class QuickWorker(PatientWorker):
    """Names of gunicorn's that are relied on besides: `on_client_socket_readable`, `murder_pending`,
    what `finish_request` makes of a result that is true, and the `unreader` of a connection's parser.
    """

    wsgi: WSGIApplication

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known = KnownRequests()
        # What threads are to answer, and what they were asked.
        self._heads: dict[Any, bytes] = {}
        self._asked = threading.local()
        self._parked: list[_Request] = []
        self._is_looking = False
        # Answers that a thread makes, for whom it does that, and who waits for it.
        self._makers: dict[Any, Hashable] = {}
        self._awaited: dict[Hashable, _Awaited] = {}
        self._is_quick = False
        self._slow_readers: SlowReaders

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self._slow_readers = SlowReaders(self.poller, self.keep, self._drop)
        self._is_quick = not self._is_watched()
        app = self.wsgi

        def remembering(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
            self._asked.environ = environ
            answer = app(environ, start_response)
            # Who waits for it need not wait for the client that it is sent to.
            self._tell_made()
            return answer

        self.wsgi = remembering

    def _is_watched(self) -> bool:
        """Whether something wants to know of each request that only gunicorn's way tells."""
        return (
            self.cfg.is_ssl
            or self.log.access_log.isEnabledFor(logging.INFO)
            or request_metrics.logger.isEnabledFor(logging.DEBUG)
            or tracing.is_wanted()
        )

    def _hand_over(self, conn: Any, content: bytes) -> None:
        if self._is_quick:
            self._heads[conn] = content
        super()._hand_over(conn, content)

    def handle(self, conn: Any) -> Any:
        """Runs in a thread; what it returns is the result of the future that `finish_request` gets."""
        head = self._heads.pop(conn, None)
        self._asked.answer = self._makers.pop(conn, None)
        self._asked.environ = {}
        try:
            kept = super().handle(conn)
            repeat = self._asked.environ.get(REPEAT)
        finally:
            self._tell_made()
            # It may hold a whole body.
            self._asked.environ = {}
        return _Repeatable(head, repeat) if kept is True and head and repeat else kept

    def _tell_made(self) -> None:
        """In a thread: has the loop go on with who waits for the answer that is made here."""
        if self._asked.answer is not None:
            self.method_queue.defer(self._made, self._asked.answer)
            self._asked.answer = None

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:
        result = None if fs.cancelled() or fs.exception() else fs.result()
        if isinstance(result, _Repeatable):
            self._known.learn(result.head, result.repeat)
        super().finish_request(conn, fs)

    def keep(self, conn: Any) -> None:
        """Waits for the next request on a connection whose last one is answered."""
        answered: Future[bool] = Future()
        answered.set_result(True)
        super().finish_request(conn, answered)

    def on_client_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """Called by gunicorn's loop for a connection that was kept, and has something to read."""
        if not (self._is_quick and self._keeps_connections()):
            super().on_client_socket_readable(conn, client)
            return
        try:
            content = client.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        known = self._known.get(content)
        if known is None:
            self._take_off(conn)
            self._as_ever(conn, content)
            return
        request = _Request(conn, content, known, time.perf_counter())
        index = known.current_or_none()
        if index is None:
            self._take_off(conn)
            self._park(request)
        elif (wire := known.answer(index, request.begun)) is None:
            self._take_off(conn)
            self._have_made(request)
        else:
            self._give(conn, wire)

    def _keeps_connections(self) -> bool:
        """Whether gunicorn would keep this one after the next answer."""
        has_room = len(self.keepalived_conns) <= self.max_keepalived
        return bool(self.alive and has_room and self.nr + 1 < self.max_requests)

    def _give(self, conn: Any, wire: Wire) -> None:
        """Sends the answer on a connection that stays where it is, if the client takes all at once."""
        rest = self._sent(conn, wire)
        if rest is None or rest:
            self._take_off(conn)
            self._go_on(conn, rest)
            return
        conn.set_timeout()
        # They are in the order in which their time ends.
        if self.keepalived_conns[-1] is not conn:
            self.keepalived_conns.remove(conn)
            self.keepalived_conns.append(conn)

    def _sent(self, conn: Any, wire: Wire) -> memoryview | None:
        """What the client does not take now of the answer; None if it is gone."""
        self.nr += 1
        head, body = wire
        try:
            sent = conn.sock.sendmsg((head, memoryview(body)[:SLICE]))
        except BlockingIOError:
            sent = 0
        except OSError:
            return None
        if sent >= len(head):
            return memoryview(body)[sent - len(head) :]
        return memoryview(head[sent:] + body)

    def _go_on(self, conn: Any, rest: memoryview | None) -> None:
        """With a connection that is taken off the loop."""
        if rest is None:
            self._drop(conn)
        elif rest:
            self._slow_readers.add(conn, rest)
        else:
            self.keep(conn)

    def _take_off(self, conn: Any) -> None:
        self.poller.unregister(conn.sock)
        self.keepalived_conns.remove(conn)

    def _as_ever(self, conn: Any, content: bytes) -> None:
        """Leaves a request to gunicorn's parser and a thread, or ends a connection without one."""
        if not content:
            self._drop(conn)
            return
        if not can_wait(conn.sock):
            # Nobody looks at what has come before a thread has it.
            self._heads[conn] = content
        conn.parser.unreader.unread(content)
        self.enqueue_req(conn)

    def _park(self, request: _Request) -> None:
        self._parked.append(request)
        if not self._is_looking:
            self._look()

    def _look(self) -> None:
        """Has one thread look at the index for all who are there now: it begins after they came."""
        self._is_looking = True
        parked, self._parked = self._parked, []
        look = self.tpool.submit(parked[0].known.index)
        look.add_done_callback(lambda done: self.method_queue.defer(self._looked, parked, done))

    def _looked(self, parked: Sequence[_Request], look: Future[int]) -> None:
        self._is_looking = False
        # What is wrong with the database a thread tells the client.
        self._answer_all(parked, None if look.cancelled() or look.exception() else look.result())
        if not self._parked:
            return
        index = self._parked[0].known.current_or_none()
        if index is None:
            self._look()
        else:
            parked, self._parked = self._parked, []
            self._answer_all(parked, index)

    def _have_made(self, request: _Request) -> None:
        """Leaves it to a thread to make the answer, or has it wait, once, for one that makes the same."""
        answer = request.known.asked
        if request.has_waited:
            self._as_ever(request.conn, request.content)
        elif answer in self._awaited:
            self._awaited[answer].requests.append(request._replace(has_waited=True))
        else:
            self._awaited[answer] = _Awaited(time.monotonic() + _PATIENCE, [])
            self._makers[request.conn] = answer
            self._as_ever(request.conn, request.content)

    def _made(self, answer: Hashable) -> None:
        awaited = self._awaited.pop(answer, None)
        if awaited is None or not awaited.requests:
            return
        index = awaited.requests[0].known.current_or_none()
        if index is not None:
            self._answer_all(awaited.requests, index)
            return
        for request in awaited.requests:
            self._park(request)

    def _answer_all(self, requests: Sequence[_Request], index: int | None) -> None:
        """Answers some, and others when all other connections had their turn."""
        for request in requests[:_AT_ONCE]:
            self._answer_parked(request, index)
        if len(requests) > _AT_ONCE:
            self.method_queue.defer(self._answer_all, requests[_AT_ONCE:], index)

    def _answer_parked(self, request: _Request, index: int | None) -> None:
        if index is None or not self._keeps_connections():
            self._as_ever(request.conn, request.content)
        elif (wire := request.known.answer(index, request.begun)) is None:
            self._have_made(request)
        else:
            self._go_on(request.conn, self._sent(request.conn, wire))

    def _drop(self, conn: Any) -> None:
        super()._drop(conn)
        answer = self._makers.pop(conn, None)
        if answer is not None:
            self._made(answer)

    def murder_pending(self) -> None:
        """Called by gunicorn's loop, once each time round."""
        super().murder_pending()
        self._slow_readers.give_up_silent()
        now = time.monotonic()
        for answer, awaited in tuple(self._awaited.items()):
            if now >= awaited.until:
                del self._awaited[answer]
                self._answer_all(awaited.requests, None)
