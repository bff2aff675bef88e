"""Webhooks from a real synchronizer to real HTTP servers: all of them, in order, and only where allowed."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from prometheus_client import REGISTRY
from sqlmodel import col, delete

from discovery import tracing
from discovery.base import ServiceInstance
from discovery.http.address_policy import network
from discovery.registries import configured
from manifest_cache.ingest.push_registry import PushRegistration, PushTables
from manifest_cache.leader.lease import Lease
from manifest_cache.settings import CacheSettings
from manifest_cache.storage.database import Database, Fenced
from manifest_cache.storage.models import EventRow, WebhookPositionRow
from manifest_cache.storage.reader import Reader
from manifest_cache.sync import Synchronizer
from manifest_cache.webhooks.service import Webhooks
from tests.consul_server import eventually
from tests.otlp_receiver import OTLPReceiver
from tests.watching import Beside
from tests.webhook_receiver import Answer, Delivery, WebhookReceiver, new_secret
from web.schemas.responses import Event as ShownEvent


class Sender:
    """A synchronizer with a file of receivers, and the means to make events."""

    def __init__(self, database: Database, url: str, file: Path) -> None:
        self.file = file
        self.database = database
        self.reader = Reader(database)
        self.settings = CacheSettings(
            database_url=url,
            registries=("push",),
            webhooks=file,
            webhook_deadline=1.5,
            webhook_retry_max=0.3,
        )
        self._push = PushTables(database, self.settings)

    def tell(self, *entries: dict[str, Any]) -> None:
        """Writes the file of receivers."""
        lines = []
        for entry in entries:
            lines.append("[[receiver]]")
            lines += [f"{name} = {_toml(value)}" for name, value in entry.items()]
        new = self.file.with_suffix(".new")
        new.write_text("\n".join(lines))
        new.replace(self.file)

    def register(self, *modules: str) -> None:
        """Makes events, of which `module.registered` is one for each new module."""
        for module in modules:
            instance = ServiceInstance(module=module, id=f"{module}-1", address="127.0.0.1", port=1)
            self._push.register(PushRegistration(instance=instance))

    def running(self, **settings: Any) -> Beside:
        changed = self.settings.model_copy(update=settings)
        return Beside(lambda: Synchronizer(changed, configured(changed)).run())

    def position(self, receiver: str) -> int | None:
        with self.database.read() as session:
            row = session.get(WebhookPositionRow, receiver)
        return row.position if row else None

    def log(self) -> list[EventRow]:
        with self.reader.snapshot() as snapshot:
            return list(snapshot.events(limit=10_000))

    def indexes(self, type_: str = "module.registered") -> list[int | None]:
        return [event.index for event in self.log() if event.type == type_]


def _toml(value: object) -> str:
    return str(value).replace("'", '"') if isinstance(value, list) else f'"{value}"'


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    url = f"sqlite:///{tmp_path}/lictor.db"
    database = Database(url)
    database.migrate()
    yield Sender(database, url, tmp_path / "webhooks.toml")
    database.close()


@pytest.fixture
def on_each(database: Database, database_url: str, tmp_path: Path) -> Sender:
    """One over each kind of database."""
    return Sender(database, database_url, tmp_path / "webhooks.toml")


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


REGISTERED = {"events": ["module.registered"]}
NAMES = [f"module-{number}" for number in range(20)]


def outcomes(receiver: str, outcome: str) -> float:
    labels = {"receiver": receiver, "outcome": outcome}
    return REGISTRY.get_sample_value("lictor_webhook_deliveries_total", labels) or 0.0


def lag(receiver: str) -> float | None:
    return REGISTRY.get_sample_value("lictor_webhook_lag_seconds", {"receiver": receiver})


def test_every_event_arrives_in_order_as_the_api_shows_it(on_each: Sender, receiver: WebhookReceiver) -> None:
    on_each.tell(receiver.entry("all"))
    with on_each.running():
        eventually(lambda: on_each.position("all") is not None)
        on_each.register(*NAMES)
        eventually(lambda: receiver.indexes()[-1:] == [on_each.reader.index()])
        assert receiver.indexes() == sorted(set(receiver.indexes()))
        by_index = {event.index: event for event in on_each.log()}
        for delivery in receiver.taken:
            event = by_index[delivery.event["index"]]
            assert delivery.event == ShownEvent.of(event).model_dump(mode="json")
            assert delivery.message["type"] == event.type
            assert delivery.message["timestamp"] == delivery.event["at"]
            assert delivery.headers["content-type"] == "application/json"
            assert delivery.headers["user-agent"].startswith("lictor/")
        assert len({delivery.id for delivery in receiver.taken}) == len(receiver.taken)
        eventually(lambda: on_each.position("all") == on_each.reader.index())
        assert lag("all") == 0
    assert lag("all") is None


def test_a_receiver_gets_what_it_asked_for(sender: Sender, receiver: WebhookReceiver) -> None:
    sender.tell(receiver.entry("some", events=["module.registered", "module.avail*"], modules=["module-1?"]))
    with sender.running():
        eventually(lambda: sender.position("some") is not None)
        sender.register(*NAMES, "other")
        receiver.wait_for("module-19", "module.available")
    assert {one.event["module"] for one in receiver.taken} == {f"module-1{digit}" for digit in range(10)}
    assert set(receiver.types()) == {"module.registered", "module.available"}


def test_a_receiver_that_was_down_gets_all_of_it_in_order(on_each: Sender) -> None:
    with WebhookReceiver() as receiver:
        on_each.tell(receiver.entry("down", **REGISTERED))
    with on_each.running():
        eventually(lambda: on_each.position("down") is not None)
        on_each.register(*NAMES)
        before = outcomes("down", "unreachable")
        eventually(lambda: outcomes("down", "unreachable") >= before + 2)
        eventually(lambda: (lag("down") or 0) > 0)
        with receiver:
            receiver.wait_for(NAMES[-1])
    assert receiver.indexes() == on_each.indexes()


def test_what_is_refused_is_tried_again_with_the_same_id(sender: Sender) -> None:
    refused: list[str] = []

    def refuse_thrice(delivery: Delivery) -> Answer:
        refused.append(delivery.id)
        return Answer(500, body=b"not \x1b[1m yet") if len(refused) <= 3 else Answer()

    with WebhookReceiver(refuse_thrice) as receiver:
        sender.tell(receiver.entry("stubborn", **REGISTERED))
        with sender.running():
            eventually(lambda: sender.position("stubborn") is not None)
            sender.register("a", "b")
            receiver.wait_for("b")
    assert len({one.id for one in receiver.tried}) == 2
    assert len({one.headers["webhook-id"] for one in receiver.tried[:4]}) == 1
    assert receiver.indexes() == sender.indexes()
    assert outcomes("stubborn", "http-status") >= 3


def test_a_restart_goes_on_where_it_was(on_each: Sender, receiver: WebhookReceiver) -> None:
    on_each.tell(receiver.entry("kept", **REGISTERED))
    with on_each.running():
        eventually(lambda: on_each.position("kept") is not None)
        on_each.register("a")
        receiver.wait_for("a")
        # What was not written down yet, as on a machine that is too busy, may come once more.
        eventually(lambda: (on_each.position("kept") or 0) >= (on_each.indexes()[-1] or 0))
    on_each.register("b", "c")
    with on_each.running():
        receiver.wait_for("c")
    assert receiver.indexes() == on_each.indexes()


def test_a_receiver_that_hangs_delays_no_other(sender: Sender, receiver: WebhookReceiver) -> None:
    with WebhookReceiver(lambda delivery: Answer(after=60)) as hanging:
        sender.tell(hanging.entry("hanging", **REGISTERED), receiver.entry("quick", **REGISTERED))
        with sender.running():
            eventually(lambda: sender.position("quick") is not None)
            sender.register("a", "b")
            receiver.wait_for("b")
            assert not hanging.taken
            eventually(lambda: outcomes("hanging", "timeout") >= 1)
            began = time.monotonic()
        assert time.monotonic() - began < 8, "the synchronizer ends in time"
    assert {one.id for one in hanging.tried} == {hanging.tried[0].id}


def test_redirects_are_not_followed(
    sender: Sender, receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = Answer(307, {"Location": f"{receiver.origin}/elsewhere"})
    with WebhookReceiver(lambda delivery: elsewhere) as sending_on:
        sender.tell(sending_on.entry("redirecting", **REGISTERED))
        with sender.running():
            eventually(lambda: sender.position("redirecting") is not None)
            sender.register("a")
            eventually(lambda: outcomes("redirecting", "redirect") >= 2)
    assert not receiver.tried
    assert "answered 307, a redirect, and such are not followed" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_only_allowed_addresses_are_connected_to(
    sender: Sender, receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    entry = receiver.entry("guarded" + "".join(one if one.isalnum() else "-" for one in host), **REGISTERED)
    sender.tell({**entry, "url": entry["url"].replace("127.0.0.1", host)})
    with sender.running(webhook_allow=(network("10.0.0.0/8"),)):
        eventually(lambda: sender.position(entry["name"]) is not None)
        sender.register("a")
        eventually(lambda: outcomes(entry["name"], "not-allowed") >= 1)
    assert not receiver.tried
    assert "is in none of the networks of LICTOR_WEBHOOK_ALLOW" in caplog.text


def test_a_receiver_that_is_gone_gets_nothing_until_the_file_changes(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    is_gone = threading.Event()
    is_gone.set()
    with WebhookReceiver(lambda delivery: Answer(410 if is_gone.is_set() else 200)) as receiver:
        entry = receiver.entry("gone", **REGISTERED)
        sender.tell(entry)
        with sender.running():
            eventually(lambda: sender.position("gone") is not None)
            sender.register("a")
            eventually(lambda: "receiver=gone gets no more webhooks: it answered 410 Gone" in caplog.text)
            sender.register("b")
            is_gone.clear()
            sender.tell(entry)
            receiver.wait_for("b")
    assert [one.event["module"] for one in receiver.tried] == ["a", "a", "b"]


def test_the_file_is_read_again(
    sender: Sender, receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    with WebhookReceiver() as other:
        sender.tell(receiver.entry("first", **REGISTERED))
        with sender.running():
            eventually(lambda: sender.position("first") is not None)
            sender.register("a")
            receiver.wait_for("a")
            sender.tell({"name": "broken"})
            eventually(lambda: "the receivers stay as they were" in caplog.text)
            sender.register("b")
            receiver.wait_for("b")
            sender.tell(other.entry("second", **REGISTERED))
            eventually(lambda: sender.position("second") is not None)
            sender.register("c")
            other.wait_for("c")
            sender.tell(receiver.entry("first", **REGISTERED), other.entry("second", **REGISTERED))
            receiver.wait_for("c")
    assert [one.event["module"] for one in other.taken] == ["c"], "a new receiver begins at now"
    assert receiver.indexes() == sender.indexes(), "one that comes back gets what it missed"


def test_events_that_are_kept_no_longer_are_told_of(
    on_each: Sender, receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    on_each.tell(receiver.entry("late", **REGISTERED))
    with on_each.running():
        eventually(lambda: on_each.position("late") is not None)
        on_each.register("a")
        receiver.wait_for("a")
    settled = on_each.position("late") or 0
    on_each.register("b")
    oldest = on_each.reader.index()
    on_each.register("c")
    with on_each.database.write() as session:
        session.execute(delete(EventRow).where(col(EventRow.index) < oldest))
    with on_each.running():
        receiver.wait_for("c")
    assert [one.event["module"] for one in receiver.taken] == ["a", "c"]
    assert f"from index={settled + 1} to index={oldest - 1} are kept no longer" in caplog.text


def test_a_rotated_secret_signs_beside_the_old_one(sender: Sender, receiver: WebhookReceiver) -> None:
    secrets = [new_secret(), receiver.secret]
    sender.tell({**receiver.entry("rotating", **REGISTERED), "secret": secrets})
    with sender.running():
        eventually(lambda: sender.position("rotating") is not None)
        sender.register("a")
        receiver.wait_for("a")
    assert len(receiver.taken[0].headers["webhook-signature"].split(" ")) == 2


def test_an_answer_of_any_size_does_no_harm(sender: Sender) -> None:
    with WebhookReceiver(lambda delivery: Answer(200, body=b"x" * 5_000_000)) as receiver:
        sender.tell(receiver.entry("talkative", **REGISTERED))
        with sender.running():
            eventually(lambda: sender.position("talkative") is not None)
            sender.register("a", "b")
            receiver.wait_for("b")
    assert len(receiver.tried) == 2


def test_a_receiver_that_asks_for_time_gets_it(sender: Sender) -> None:
    waits = iter([Answer(503, {"Retry-After": "1"}), Answer()])
    with WebhookReceiver(lambda delivery: next(waits)) as receiver:
        sender.tell(receiver.entry("busy", **REGISTERED))
        with sender.running(webhook_retry_max=300.0):
            eventually(lambda: sender.position("busy") is not None)
            sender.register("a")
            receiver.wait_for("a")
    assert receiver.tried[1].at - receiver.tried[0].at >= 1


def test_a_receiver_that_asks_for_a_time_beyond_all_calendars(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    never = "Wed, 21 Oct 2026 07:28:00 +99999999999999999999"
    waits = iter([Answer(503, {"Retry-After": never}), Answer()])
    with WebhookReceiver(lambda delivery: next(waits)) as receiver:
        sender.tell(receiver.entry("odd", **REGISTERED))
        with sender.running():
            eventually(lambda: sender.position("odd") is not None)
            sender.register("a")
            receiver.wait_for("a")
    assert "webhook not delivered receiver=odd" in caplog.text
    assert "unexpectedly" not in caplog.text


def test_https(sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with WebhookReceiver(tls=tls) as receiver:
        sender.tell(receiver.entry("secure", **REGISTERED))
        with sender.running():
            eventually(lambda: sender.position("secure") is not None)
            sender.register("a")
            eventually(lambda: outcomes("secure", "tls") >= 1)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with sender.running():
            receiver.wait_for("a")


def test_a_leader_that_was_replaced_delivers_no_more(on_each: Sender, receiver: WebhookReceiver) -> None:
    on_each.tell(receiver.entry("fenced", **REGISTERED))
    lease = Lease(on_each.database)
    first = lease.take("first", lease.look(), silent=True)
    assert first is not None
    webhooks = Webhooks(first, on_each.settings)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            delivering = group.create_task(webhooks.run())
            while not delivering.done():
                webhooks.notice()
                await asyncio.sleep(0.05)

    with pytest.raises(ExceptionGroup) as caught, Beside(run) as running:  # noqa: PT012 - it fails at the end
        eventually(lambda: on_each.position("fenced") is not None)
        on_each.register("a")
        receiver.wait_for("a")
        before = on_each.reader.index()
        eventually(lambda: lease.take("second", lease.look(), silent=True))
        on_each.register("b")
        eventually(lambda: running.ended)
        on_each.register("c")
    assert caught.value.subgroup(Fenced) is not None
    assert [one.event["module"] for one in receiver.taken] in (["a"], ["a", "b"])
    assert (on_each.position("fenced") or 0) <= before, "nothing was written since"


def test_a_delivery_is_a_span_that_the_receiver_can_continue(
    sender: Sender, receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender.tell(receiver.entry("traced", **REGISTERED))
    with OTLPReceiver() as collector:
        for name, value in collector.environment.items():
            monkeypatch.setenv(name, value)
        with tracing.started("test"), sender.running():
            eventually(lambda: sender.position("traced") is not None)
            sender.register("a")
            span = collector.wait_for("deliver webhook")
    assert span.attributes == {"lictor.receiver": "traced", "lictor.index": receiver.indexes()[0]}
    assert receiver.taken[0].headers["traceparent"].startswith(f"00-{span.trace}-{span.id}-")


def test_no_secret_is_logged(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    # As many servers answer where nothing is; the path may be all that keeps others out.
    nothing_here = Answer(404, body=b"<pre>Cannot POST /hooks/lictor (/hooks/lictor?key=1)</pre>")
    with WebhookReceiver(lambda delivery: nothing_here) as receiver:
        entry = receiver.entry("secretive")
        sender.tell({**entry, "url": f"{entry['url']}?key=1"})
        with sender.running():
            eventually(lambda: sender.position("secretive") is not None)
            sender.register("a")
            eventually(lambda: outcomes("secretive", "http-status") >= 1)
            sender.tell({**receiver.entry("secretive"), "secret": receiver.secret[:-5]})
            eventually(lambda: "the receivers stay as they were" in caplog.text)
    assert "answered 404 Not Found: " in caplog.text
    assert receiver.secret[6:30] not in caplog.text
    assert "/hooks/lictor" not in caplog.text
