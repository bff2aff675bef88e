"""Webhooks of the real commands: `lictor sync` that is killed, what `up` refuses, what `doctor` tells."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from discovery.registry.check_result import CheckResult
from manifest_cache.storage.models import EventRow
from tests.cli.command import Lictor, Running
from tests.cli.test_doctor_command import results
from tests.consul_server import eventually
from tests.web.filling import Cache, instance
from tests.webhook_receiver import Answer, WebhookReceiver
from web.cli.doctor.webhooks import check_webhooks

NAMES = [f"module-{number}" for number in range(30)]


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver(lambda delivery: Answer(after=0.02)) as receiver:
        yield receiver


@pytest.fixture
def file(lictor: Lictor, receiver: WebhookReceiver) -> Path:
    """The file of receivers that the settings name, in which there is one."""
    file = lictor.folder / "webhooks.toml"
    fields = receiver.entry("audit").items()
    file.write_text(
        "\n".join(
            [
                "[[receiver]]",
                'events = ["module.registered"]',
                *(f'{name} = "{told}"' for name, told in fields),
            ]
        )
    )
    file.chmod(0o600)
    lictor.settings |= {"LICTOR_WEBHOOKS": file.name, "LICTOR_REGISTRIES": "push"}
    return file


def started(lictor: Lictor) -> Running:
    synchronizer = lictor.start("sync")
    synchronizer.wait_for("webhooks go to audit")
    return synchronizer


def test_a_killed_synchronizer_loses_nothing(
    lictor: Lictor, cache: Cache, receiver: WebhookReceiver, file: Path
) -> None:
    first = started(lictor)
    for name in NAMES:
        cache.push(instance(name))
    eventually(lambda: len(receiver.taken) >= 5)
    first.process.kill()
    first.wait()
    second = started(lictor)
    receiver.wait_for(NAMES[-1])
    assert second.end() == 0

    came = [delivery.event["module"] for delivery in receiver.taken]
    assert list(dict.fromkeys(came)) == NAMES, "each came, and the first time in order"
    ids = {(delivery.id, delivery.event["index"]) for delivery in receiver.taken}
    assert len(ids) == len(NAMES), "what came once more came with the same id"
    assert receiver.secret not in first.text + second.text


def test_a_clean_end_repeats_nothing(
    lictor: Lictor, cache: Cache, receiver: WebhookReceiver, file: Path
) -> None:
    synchronizer = started(lictor)
    cache.push(instance("a"))
    receiver.wait_for("a")
    assert synchronizer.end(signal.SIGINT) == 0
    cache.push(instance("b"))
    synchronizer = started(lictor)
    receiver.wait_for("b")
    assert synchronizer.end() == 0
    assert [delivery.event["module"] for delivery in receiver.tried] == ["a", "b"]


@pytest.mark.parametrize("command", ["sync", "up"])
def test_a_faulty_file_is_refused(lictor: Lictor, cache: Cache, file: Path, command: str) -> None:
    file.write_text('[[receiver]]\nname = "audit"\nurl = "audit.example"\nsecret = "hunter2"\n')
    done = lictor.run(command)
    assert done.returncode == 2
    assert 'LICTOR_WEBHOOKS: webhooks.toml: receiver "audit": url: must begin with https://' in done.stderr
    assert "hunter2" not in done.stderr


def test_doctor(lictor: Lictor, cache: Cache, receiver: WebhookReceiver, file: Path) -> None:
    def looked() -> dict[str, CheckResult]:
        found = check_webhooks(file, f"sqlite:///{lictor.database}")
        return {result.check: result for result in found}

    assert looked()["webhooks"].status == "ok"
    assert "the synchronizer does not know it yet" in looked()["webhook audit"].detail
    assert started(lictor).end() == 0
    found = results(lictor)
    assert found["webhook audit"]["detail"] == f"{receiver.origin} has all events"
    cache.push(instance("a"))
    assert looked()["webhook audit"].status == "ok", "what has just happened may be under way"
    with cache.database.write() as session:
        for event in session.exec(select(EventRow)):
            event.at -= timedelta(minutes=5)
    assert looked()["webhook audit"].status == "warn"
    assert "which happened 5m ago" in looked()["webhook audit"].detail
    file.chmod(0o644)
    assert "every user of this machine can read it" in looked()["webhooks"].detail
    file.write_text("")
    assert "has no [[receiver]] table" in looked()["webhooks"].detail
