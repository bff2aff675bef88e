"""Lictor served by a real gunicorn: settings in, processes that answer, or a clear refusal, out."""

from __future__ import annotations

import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.web.filling import Cache
from tests.web.gunicorn_server import Gunicorn, answers, free_port, running

REGISTER = "/api/v1/modules/register"


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_what_is_pushed_is_read_on_every_worker(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind, workers="3") as server:
        for number in range(20):
            body = {"name": "weather", "id": f"w-{number}", "port": 1}
            answer = http.post(REGISTER, json=body)
            assert answer.status_code == 201, answer.text
            index = answer.json()["index"]
            for _ in range(4):
                read = http.get("/api/v1/modules/weather")
                assert int(read.headers["X-Lictor-Index"]) == index
                assert len(read.json()["instances"]) == number + 1
        assert http.head("/api/v1/modules").headers["X-Lictor-Index"] == str(index)
        assert http.get("/api/v1/modules", headers={"If-None-Match": f'"{index}"'}).status_code == 304
        assert http.get("/").status_code == 200
        assert server.end() == 0
        assert "[ERROR]" not in server.log
        assert "Traceback" not in server.log


def test_requests_at_once(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    statuses: list[int] = []

    def push(worker: int) -> None:
        for number in range(5):
            body = {"name": f"m{worker}", "id": f"{number}", "port": 1}
            statuses.append(http.post(REGISTER, json=body).status_code)
            statuses.append(http.get("/api/v1/modules?include=instances").status_code)

    with running(tmp_path, http, database_url=database_url, bind=bind):
        threads = [threading.Thread(target=push, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(set(statuses)) == [200, 201]
        assert len(http.get("/api/v1/modules").json()["items"]) == 8


def test_bodies_without_a_length_and_large_ones(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    headers = {"Content-Type": "application/json"}
    with running(tmp_path, http, database_url=database_url, bind=bind):
        chunks = iter([b'{"name": "weather", ', b'"port": 1}'])
        assert http.post(REGISTER, content=chunks, headers=headers).status_code == 201
        endless = (b" " * 65536 for _ in range(64))
        try:
            refused = http.post(REGISTER, content=endless, headers=headers)
        except httpx.WriteError:
            # The server had answered, and did not wait for the rest.
            refused = None
        assert refused is None or refused.status_code == 413
        large = http.post(REGISTER, content=b" " * 3_000_000, headers=headers)
        assert (large.status_code, large.json()["type"]) == (413, "/problems/body-too-large")
        assert http.get("/api/v1/modules/" + "a" * 5000).status_code == 400
        assert http.get("/api/v1/modules/" + "a" * 10_000).status_code == 414


def test_a_port_in_use_is_told_at_once(database_url: str, bind: str, tmp_path: Path) -> None:
    host, _, port = bind.partition(":")
    with socket.socket() as taken:
        # As another gunicorn would: without a look at it both would answer.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind((host, int(port)))
        taken.listen()
        server = Gunicorn(tmp_path, database_url=database_url, bind=bind)
        assert server.process.wait(60) == 1
    assert f"LICTOR_BIND: cannot listen on {bind}: Address already in use" in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_that_is_not_here(database_url: str, tmp_path: Path, host: str) -> None:
    server = Gunicorn(tmp_path, database_url=database_url, bind=f"{host}:{free_port()}")
    assert server.process.wait(60) == 1
    assert f"LICTOR_BIND: cannot listen on {host}:" in server.log
    assert "Traceback" not in server.log


def test_wrong_settings_are_told_all_at_once(tmp_path: Path) -> None:
    server = Gunicorn(tmp_path, bind="8080", workers="none", log_level="loud")
    assert server.process.wait(60) == 2
    for name in ("LICTOR_BIND", "LICTOR_WORKERS", "LICTOR_LOG_LEVEL"):
        assert f"  {name}: " in server.log
    assert "Traceback" not in server.log


def test_a_unix_socket(cache: Cache, database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "lictor.sock"
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(base_url="http://localhost", transport=transport) as client:
        settings = {"database_url": database_url, "bind": f"unix:{path}"}
        with running(tmp_path, client, unix=path, **settings):
            assert client.get("/api/v1/modules").status_code == 200
            refused = client.post(REGISTER, json={"name": "weather", "port": 1})
            assert refused.json()["type"] == "/problems/push-disabled"
            (tmp_path / "second").mkdir()
            second = Gunicorn(tmp_path / "second", **settings)
            assert second.process.wait(20) == 1
            assert "another server listens on it" in second.log
            assert client.get("/api/v1/modules").status_code == 200


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("file", "it is there, and no socket"),
        (".", "it is there, and no socket"),
        ("nowhere/lictor.sock", "no socket can be made in"),
        ("file/lictor.sock", "Not a directory"),
        ("x" * 200, "AF_UNIX path too long"),
    ],
    ids=["a file", "a folder", "no folder", "in a file", "too long"],
)
def test_where_no_unix_socket_can_be(database_url: str, tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "file").touch()
    server = Gunicorn(tmp_path, database_url=database_url, bind=f"unix:{tmp_path / path}")
    assert server.process.wait(60) == 1
    assert f"LICTOR_BIND: cannot listen on unix:{tmp_path / path}: {why}" in server.log
    assert "Traceback" not in server.log


def test_a_reload_keeps_it_serving(
    cache: Cache, database_url: str, bind: str, http: httpx.Client, tmp_path: Path
) -> None:
    with running(tmp_path, http, database_url=database_url, bind=bind, log_format="json") as server:
        booted = server.log.count("Booting worker")
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while server.log.count("Booting worker") < 2 * booted or not answers(http):
            assert time.monotonic() < deadline, server.log
            time.sleep(0.05)
        assert all(line.startswith("{") for line in server.log.splitlines())
