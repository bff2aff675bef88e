"""The file of receivers: what it may say, and how each fault is told, never with a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from discovery.errors import ConfigError
from manifest_cache.webhooks.config import Receiver, WebhookFile
from tests.webhook_receiver import new_secret

SECRET = new_secret()


def read(folder: Path, content: str) -> tuple[Receiver, ...]:
    path = folder / "webhooks.toml"
    path.write_text(content)
    return WebhookFile(path).read()


def entry(**fields: str) -> str:
    """A [[receiver]] table that is well but for these fields; a field that is empty is left out."""
    whole = {"name": '"audit"', "url": '"https://audit.example/hooks"', "secret": f'"{SECRET}"', **fields}
    return "\n".join(["[[receiver]]", *(f"{name} = {value}" for name, value in whole.items() if value)])


def test_a_receiver_with_all_fields(tmp_path: Path) -> None:
    fields = {"url": '"https://Hooks.example:8443/x/y?z=1"', "events": '["module.*", "instance.removed"]'}
    (receiver,) = read(tmp_path, entry(**fields, modules='["fin*"]'))
    assert (receiver.name, receiver.origin) == ("audit", "https://hooks.example:8443")
    assert receiver.url.path == "/x/y?z=1"
    assert receiver.wants("module.available", "financial")
    assert receiver.wants("instance.removed", "fin")
    assert not receiver.wants("instance.added", "financial")
    assert not receiver.wants("module.available", "orders")
    assert not receiver.wants("registry.lost", None)


def test_a_receiver_gets_everything_unless_it_says_otherwise(tmp_path: Path) -> None:
    (receiver,) = read(tmp_path, entry())
    assert receiver.wants("registry.lost", None)
    assert receiver.wants("module.forgotten", "orders")
    assert (receiver.url.port, len(receiver.keys)) == (443, 1)


@pytest.mark.parametrize("url", ["http://[::1]:8080/", "http://127.0.0.1", "https://hooks.example."])
def test_addresses(tmp_path: Path, url: str) -> None:
    (receiver,) = read(tmp_path, entry(url=f'"{url}"'))
    assert url.startswith(receiver.origin)


def test_secrets_of_a_rotation(tmp_path: Path) -> None:
    (receiver,) = read(tmp_path, entry(secret=f'["{new_secret()}", "{SECRET}"]'))
    assert len(receiver.keys) == 2


def test_secrets_in_a_file_beside(tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text(f"{new_secret()}\n{SECRET}\n")
    (receiver,) = read(tmp_path, entry(secret="", secret_file='"secrets"'))
    assert len(receiver.keys) == 2


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param("[[receiver]", "is not TOML: ", id="no TOML"),
        pytest.param(f"x = {'[' * 50_000}", "is nested too deep", id="nested"),
        pytest.param("", "has no [[receiver]] table", id="empty"),
        pytest.param("receiver = 1", "has no [[receiver]] table", id="no tables"),
        pytest.param(f"x = 1\n{entry()}", '"x" is unknown', id="unknown beside"),
        pytest.param("receiver = [1]", "receiver 1: must be a table", id="no table"),
        pytest.param(entry(name=""), "receiver 1: name: is missing", id="no name"),
        pytest.param(entry(name='"a b"'), 'receiver "a b": name: must have 1 to 64 letters', id="bad name"),
        pytest.param(entry(url=""), 'receiver "audit": url: is missing', id="no url"),
        pytest.param(entry(url='"audit.example"'), "url: must begin with https://", id="no scheme"),
        pytest.param(entry(url='"ftp://audit.example"'), "url: must begin with https://", id="ftp"),
        pytest.param(entry(url='"https://"'), "url: must name a host", id="no host"),
        pytest.param(entry(url='"https://10.0.0.300/"'), "url: must name a host", id="no address"),
        pytest.param(entry(url='"https://127.1/"'), "url: must name a host", id="another spelling"),
        pytest.param(entry(url='"https://a.example:99999/"'), "url: must end its host in a port", id="port"),
        pytest.param(entry(url='"https://a.example:0/"'), "url: must have a port from 1", id="port 0"),
        pytest.param(entry(url='"https://me:pw@a.example/"'), "url: must hold no user name", id="user"),
        pytest.param(entry(url='"https://a.example/#x"'), "url: must have no fragment", id="fragment"),
        pytest.param(entry(url='"https://a.example/a b"'), "url: must be an address such as", id="blank"),
        pytest.param(entry(url="1"), "url: must be an address such as", id="url is a number"),
        pytest.param(entry(events='["modul.*"]'), 'events: no event is of type "modul.*"', id="event type"),
        pytest.param(entry(events='"module.*"'), "events: must be a list of patterns", id="no list"),
        pytest.param(entry(modules="[]"), "modules: must be a list of patterns", id="no modules"),
        pytest.param(entry(secret=""), "needs either a secret or a secret_file", id="no secret"),
        pytest.param(entry(secret_file='"x"'), "needs either a secret or a secret_file", id="both"),
        pytest.param(entry(secret='"hunter2"'), 'secret: must be "whsec_" and the base64', id="no prefix"),
        pytest.param(entry(secret='"whsec_aHVudGVyMg=="'), 'secret: must be "whsec_"', id="short"),
        pytest.param(entry(secret='"whsec_%%%"'), 'secret: must be "whsec_"', id="no base64"),
        pytest.param(entry(secret="2"), "secret: must be a secret, or a list", id="secret is a number"),
        pytest.param(entry(secret="", secret_file='"nowhere"'), "nowhere cannot be read: No such", id="gone"),
        pytest.param(entry(retries="3"), "retries: is unknown: there are name, url", id="unknown field"),
        pytest.param(f"{entry()}\n{entry()}", "name: is that of two receivers", id="same name"),
        pytest.param("\n".join([entry()] * 101), "has 101 receivers: 100 are allowed", id="too many"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, content: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content)
    (said,) = caught.value.faults
    assert said.startswith(f"LICTOR_WEBHOOKS: {tmp_path}/webhooks.toml: ")
    assert fault in said
    assert SECRET not in said
    assert "hunter2" not in said


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "\n".join([entry(url="", events='["x"]'), entry(name='"chat"', secret='"x"')]))
    assert len(caught.value.faults) == 3


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0]
    (tmp_path / "secret").write_text(SECRET)
    receivers = read(tmp_path, example.replace("/run/secrets/lictor-audit", "secret"))
    assert [receiver.name for receiver in receivers] == ["audit", "deploy-board"]
    assert receivers[1].url.path == "/hooks?board=7"


def test_no_representation_holds_a_secret(tmp_path: Path) -> None:
    (receiver,) = read(tmp_path, entry(url='"https://chat.example/T0KEN"'))
    assert repr(receiver.keys[0]) not in repr(receiver)
    assert "T0KEN" not in repr(receiver)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"webhooks\.toml: cannot be read: No such file"):
        WebhookFile(tmp_path / "webhooks.toml").read()


def test_changes_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "webhooks.toml").write_text(entry(secret="", secret_file='"secret"'))
    file = WebhookFile(tmp_path / "webhooks.toml")
    file.read()
    assert not file.changed
    (tmp_path / "new").write_text(new_secret())
    (tmp_path / "new").replace(tmp_path / "secret")
    assert file.changed
    file.read()
    (tmp_path / "webhooks.toml").unlink()
    assert file.changed
