"""Settings of the web server: environment in; values, defaults or every fault out; and their page."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from discovery.errors import ConfigError
from discovery.timing.durations import format_duration
from web import settings as settings_module
from web.settings import Settings
from web.telemetry.logging_config import logging_config

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_defaults() -> None:
    settings = Settings.load()
    assert (settings.bind, settings.url) == ("127.0.0.1:8080", "http://127.0.0.1:8080")
    assert settings.is_loopback
    assert settings.push_token_file is None
    assert 2 <= settings.workers <= 8


@pytest.mark.parametrize(
    ("bind", "host_port", "is_loopback", "url"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80), True, "http://127.0.0.1:80"),
        ("127.1.2.3:80", ("127.1.2.3", 80), True, "http://127.1.2.3:80"),
        ("localhost:80", ("localhost", 80), True, "http://localhost:80"),
        ("[::1]:80", ("::1", 80), True, "http://[::1]:80"),
        ("[::ffff:127.0.0.1]:80", ("::ffff:127.0.0.1", 80), True, "http://[::ffff:127.0.0.1]:80"),
        ("0.0.0.0:80", ("0.0.0.0", 80), False, "http://127.0.0.1:80"),
        (":80", ("0.0.0.0", 80), False, "http://127.0.0.1:80"),
        ("[::]:80", ("::", 80), False, "http://[::1]:80"),
        ("10.0.0.1:65535", ("10.0.0.1", 65535), False, "http://10.0.0.1:65535"),
        ("lictor.example:80", ("lictor.example", 80), False, "http://lictor.example:80"),
        ("localhost.example:80", ("localhost.example", 80), False, "http://localhost.example:80"),
        ("unix:/run/lictor.sock", None, False, "unix:/run/lictor.sock"),
    ],
)
def test_where_it_listens(bind: str, host_port: object, is_loopback: bool, url: str) -> None:
    settings = Settings.load(bind=bind)
    assert (settings.host_port, settings.is_loopback, settings.url) == (host_port, is_loopback, url)


@pytest.mark.parametrize(
    "bind",
    [
        *("", "8080", "localhost", "http://localhost:80", "::1:80", "[::1]"),
        *("host:0", "host:65536", "host:-1", "host:http", "host:٨٠"),
        *("a b:80", "my_host:80", "127.0.0.1:8080 ", "unix:", "unix:relative"),
    ],
)
def test_where_it_cannot_listen(bind: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Settings.load(bind=bind)
    (fault,) = raised.value.faults
    assert fault.startswith("LICTOR_BIND: ")


def test_every_fault_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "BIND": "8080",
        "WORKERS": "0",
        "THREADS": "many",
        "LOG_LEVEL": "loud",
        "LOG_FORMAT": "xml",
        "REGISTRIES": "consul",
        "PUSH_TOKEN_FILE": "/run/token",
        "FETCH_DEADLINE": "soon",
        "DATABASE_URL": "mysql://x",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(f"LICTOR_{name}", value)
    with pytest.raises(ConfigError) as raised:
        Settings.load()
    told = {fault.partition(":")[0] for fault in raised.value.faults}
    assert told == {f"LICTOR_{name}" for name in wrong} - {"LICTOR_REGISTRIES"}


def test_an_empty_token_file_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LICTOR_PUSH_TOKEN_FILE", "")
    with pytest.raises(ConfigError, match="LICTOR_PUSH_TOKEN_FILE: is empty"):
        Settings.load()


@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (2, 2), (4, 4), (32, 8)])
def test_workers_follow_the_machine(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int) -> None:
    monkeypatch.setattr(settings_module, "usable_cores", lambda: cores)
    assert Settings.load().workers == workers
    assert Settings.load(workers=3).workers == 3


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None), ("?", None)]
)
def test_a_containers_quota_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, expected: int | None
) -> None:
    monkeypatch.setattr(settings_module, "_CPU_QUOTA", tmp_path / "cpu.max")
    without = settings_module.usable_cores()
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert settings_module.usable_cores() == (without if expected is None else min(without, expected))


def test_the_page_tells_of_every_setting() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        default = "one per core, 2 to 8" if name == "workers" else _shown(field)
        assert f"| `LICTOR_{name.upper()}` | {default} | {field.description} |\n" in page
    assert page.count("\n| `LICTOR_") == len(Settings.model_fields) + len(_OF_MODULES)
    for variable in _OF_MODULES:
        assert f"| `{variable}` |" in page


_OF_MODULES = ("LICTOR_VIA", "LICTOR_URL", "LICTOR_PUSH_TOKEN_FILE")


def _shown(field: FieldInfo) -> str:
    default = field.default
    if default is None:
        return "not set"
    if isinstance(default, tuple):
        return f"`{','.join(map(str, default))}`"
    is_duration = any(isinstance(part, BeforeValidator) for part in field.metadata)
    if is_duration and default % 86400 == 0:
        return f"`{default / 86400:.0f}d`"
    return f"`{format_duration(default) if is_duration else default}`"


def test_a_line_of_the_log_is_one_json_object() -> None:
    config = logging_config(Settings.load(log_format="json", log_level="WARNING"))
    assert config["root"]["level"] == "WARNING"
    formatter = config["formatters"]["json"]["()"]()
    fault = ValueError("of no\nuse")
    exc_info = (type(fault), fault, None)
    line = formatter.format(logging.LogRecord("x", logging.ERROR, "", 1, "two\n%s", ("lines",), exc_info))
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("error", "x", "two\nlines")
    assert "of no\nuse" in found["exception"]
    assert found["at"].endswith("Z")
