"""`lictor doctor` against real servers: what is well, what is not, and how it is mended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from discovery.registry import check_result
from tests.cli.command import LICTOR, Lictor
from tests.consul_server import (
    ConsulServer,
    RunningConsul,
    ScriptedConsul,
    consul_binary,
    eventually,
    federate,
)
from tests.postgres_server import PostgresServer
from tests.web.filling import Cache, instance

POLICY = Path(__file__).parents[2] / "consul" / "policies" / "lictor-read.hcl"


def results(lictor: Lictor, **settings: str) -> dict[str, dict[str, str]]:
    told = lictor.json("doctor", **settings)
    found = {check["check"]: check for check in told["checks"]}
    assert told["ok"] is all(check["status"] != "fail" for check in found.values())
    return found


def statuses(found: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: check["status"] for name, check in found.items()}


def test_all_is_well(lictor: Lictor, cache: Cache, consul: RunningConsul) -> None:
    lictor.settings["CONSUL_HTTP_ADDR"] = consul.http_addr
    lictor.serve()
    lictor.start("sync").wait_for("following source=consul")
    eventually(lambda: results(lictor).get("source consul"))
    done = lictor.run("doctor")
    assert done.returncode == 0, done.stdout
    assert "0 failed" in done.stdout
    assert set(statuses(results(lictor)).values()) == {"ok"}


def test_a_consul_that_is_away(lictor: Lictor, cache: Cache) -> None:
    done = lictor.run("doctor")
    assert done.returncode == 1
    assert "fail  consul" in done.stdout
    assert "connection refused" in done.stdout
    assert "-> start a Consul agent (`lictor up --consul dev` has one), or mend the setting" in done.stdout


@pytest.mark.parametrize("said", ["[]", "null", '{"leader": "me"}', "5"])
def test_what_answers_is_no_consul(
    lictor: Lictor, cache: Cache, scripted_consul: ScriptedConsul, said: str
) -> None:
    for _ in range(2):
        scripted_consul.answer(said)
    found = results(lictor, CONSUL_HTTP_ADDR=scripted_consul.http_addr)
    assert found["consul"]["status"] == "fail"
    assert "is no Consul" in found["consul"]["detail"]
    assert "CONSUL_HTTP_ADDR" in found["consul"]["mend"]
    assert "database" in found


def test_without_consul_it_is_not_looked_at(lictor: Lictor, cache: Cache) -> None:
    assert not [name for name in results(lictor, LICTOR_REGISTRIES="push") if name.startswith("consul")]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, consul: RunningConsul) -> Any:
    """A Consul that denies by default."""
    with ConsulServer(consul_binary(), tmp_path_factory.mktemp("guarded"), acl=True) as server:
        yield server


@pytest.mark.parametrize(
    ("rules", "status", "told"),
    [
        (POLICY.read_text(), "ok", "can be read"),
        ('service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }', "ok", "can be read"),
        ('service_prefix "" { policy = "read" }', "fail", "no node can be read"),
        ('node_prefix "" { policy = "read" }', "fail", "no service can be read"),
        ('key_prefix "" { policy = "read" }', "fail", "no node can be read"),
    ],
    ids=["our policy", "services and nodes", "no nodes", "no services", "neither"],
)
def test_the_rights_of_a_token(
    lictor: Lictor, cache: Cache, guarded: ConsulServer, rules: str, status: str, told: str
) -> None:
    token = guarded.create_token(rules)
    found = results(lictor, CONSUL_HTTP_ADDR=guarded.http_addr, CONSUL_HTTP_TOKEN=token)
    assert found["consul"]["status"] == "ok"
    assert found["consul token"]["status"] == "ok"
    assert found["consul rights"]["status"] == status
    assert told in found["consul rights"]["detail"]
    assert ("lictor-read.hcl" in found["consul rights"]["mend"]) is (status == "fail")


def test_the_rights_to_lead(lictor: Lictor, cache: Cache, guarded: ConsulServer) -> None:
    where = {"CONSUL_HTTP_ADDR": guarded.http_addr, "LICTOR_LEADER_KEY": "lictor/a"}
    token = guarded.create_token(POLICY.read_text())
    assert results(lictor, **where, CONSUL_HTTP_TOKEN=token)["consul lock"]["status"] == "ok"
    reading = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" } '
    token = guarded.create_token(reading + 'session_prefix "" { policy = "write" }')
    found = results(lictor, **where, CONSUL_HTTP_TOKEN=token)["consul lock"]
    assert found["status"] == "warn"
    assert 'key "lictor/a" { policy = "write" }' in found["mend"]
    assert 'service "lictor" { policy = "write" }' in found["mend"]
    assert "session" not in found["mend"]
    with guarded.client(token=guarded.management_token) as client:
        assert client.api.kv.get("lictor/a")[1] is None
        assert not [one for one in client.health_service("lictor").data if "try" in one["Service"]["ID"]]


def test_which_synchronizer_leads(lictor: Lictor, cache: Cache) -> None:
    leader = lictor.start("sync", LICTOR_REGISTRIES="push")
    name = leader.wait_for(r"leading holder=(\S+)")[1]
    found = results(lictor)["synchronizer"]
    assert found["status"] == "ok"
    assert found["detail"].startswith(f"{name} leads since ")
    leader.end()
    assert results(lictor)["synchronizer"]["status"] == "warn"


def test_the_datacenters_that_are_followed(
    lictor: Lictor, cache: Cache, consul_server: Callable[..., ConsulServer]
) -> None:
    one, two = consul_server(), consul_server(hcl=['datacenter = "dc2"'])
    lictor.settings["CONSUL_HTTP_ADDR"] = one.http_addr
    assert "datacenters" not in results(lictor)
    found = results(lictor, LICTOR_CONSUL_DATACENTERS="dc1,dc2")["datacenters"]
    assert (found["status"], found["detail"]) == ("fail", "the agent knows no dc2, only dc1")
    assert found["mend"].startswith("mend LICTOR_CONSUL_DATACENTERS, or join Consul's servers")
    federate(one, two)
    for wanted in ("dc1,dc2", "all"):
        found = results(lictor, LICTOR_CONSUL_DATACENTERS=wanted)["datacenters"]
        assert (found["status"], found["detail"]) == ("ok", "dc1, dc2 can be read")
    two.pause()
    found = results(lictor, LICTOR_CONSUL_DATACENTERS="all")["datacenters"]
    assert found["status"] == "fail"
    assert found["detail"].startswith("dc2 cannot be read: ")
    two.resume()


def test_no_token_where_one_is_needed(lictor: Lictor, cache: Cache, guarded: ConsulServer) -> None:
    found = results(lictor, CONSUL_HTTP_ADDR=guarded.http_addr)
    assert found["consul rights"]["status"] == "fail"
    assert "anonymous" in found["consul token"]["detail"]


def test_an_unknown_token(lictor: Lictor, cache: Cache, guarded: ConsulServer) -> None:
    token = "11111111-2222-3333-4444-555555555555"
    done = lictor.run("doctor", CONSUL_HTTP_ADDR=guarded.http_addr, CONSUL_HTTP_TOKEN=token)
    assert done.returncode == 1
    assert "fail  consul token      Consul does not know the token" in done.stdout
    assert token not in done.stdout


def test_version_and_limit_are_told_to_who_may_know(
    lictor: Lictor, cache: Cache, guarded: ConsulServer, consul_server: Callable[..., ConsulServer]
) -> None:
    found = results(lictor, CONSUL_HTTP_ADDR=guarded.http_addr, CONSUL_HTTP_TOKEN=guarded.management_token)
    assert "Consul 1." in found["consul"]["detail"]
    assert "in dc1" in found["consul"]["detail"]
    few = consul_server(hcl=["limits { http_max_conns_per_client = 3 }"])
    limits = results(lictor, CONSUL_HTTP_ADDR=few.http_addr)["consul limits"]
    assert limits["status"] == "warn"
    assert "takes 3 connections" in limits["detail"]


@pytest.mark.parametrize(
    ("seconds", "status", "told"),
    [
        (0.2, "ok", "as Consul's"),
        (-4.0, "ok", "as Consul's"),
        (10.0, "warn", "10 s behind Consul's"),
        (-30.0, "warn", "30 s ahead of Consul's"),
        (3600.0, "fail", "3600 s behind Consul's"),
    ],
)
def test_clocks_that_differ(seconds: float, status: str, told: str) -> None:
    found = check_result.clock("clock", "Consul's", seconds)
    assert found.status == status
    assert told in found.detail


def test_a_database_that_is_not_there(lictor: Lictor) -> None:
    found = results(lictor)["database"]
    assert (found["status"], found["mend"]) == ("fail", "run `lictor migrate`")
    assert not lictor.database.exists()


def test_a_folder_that_is_not_there(lictor: Lictor) -> None:
    found = results(lictor, LICTOR_DATABASE_URL=f"sqlite:///{lictor.folder}/data/lictor.db")
    assert found["database folder"]["status"] == "fail"
    assert found["database folder"]["mend"] == f"make it: mkdir -p {lictor.folder}/data"


def test_a_database_that_is_locked(lictor: Lictor, cache: Cache) -> None:
    with cache.database.write():
        found = results(lictor)
    assert found["database"]["status"] == "ok"
    assert found["database writing"]["status"] == "fail"
    assert "locked" in found["database writing"]["detail"]


def test_a_database_server(lictor: Lictor, postgres: PostgresServer) -> None:
    url = postgres.create_database()
    assert results(lictor, LICTOR_DATABASE_URL=url)["database"]["status"] == "fail"
    lictor.run("migrate", LICTOR_DATABASE_URL=url)
    found = results(lictor, LICTOR_DATABASE_URL=url)
    for check in ("database", "database writing", "database clock"):
        assert found[check]["status"] == "ok"


def test_a_database_server_that_is_away(lictor: Lictor) -> None:
    url = f"postgresql://lictor:secret@{lictor.settings['CONSUL_HTTP_ADDR']}/lictor"
    done = lictor.run("doctor", LICTOR_DATABASE_URL=url)
    assert done.returncode == 1
    assert "fail  database " in done.stdout
    assert "secret" not in done.stdout


def test_a_registry_that_is_lost_and_a_synchronizer_that_never_ran(lictor: Lictor, cache: Cache) -> None:
    assert results(lictor)["synchronizer"]["status"] == "warn"
    cache.announce(instance("financial"))
    cache.lose(reason="connection refused")
    found = results(lictor)["source consul"]
    assert found["status"] == "warn"
    assert "connection refused" in found["detail"]


def test_a_token_file_that_is_not_there(lictor: Lictor, cache: Cache) -> None:
    found = results(lictor, LICTOR_PUSH_TOKEN_FILE="/nowhere/token")["push"]
    assert found["status"] == "fail"
    assert "/nowhere/token cannot be read" in found["detail"]
    token = lictor.folder / "token"
    token.write_text("letters-and-digits-1\n")
    assert results(lictor, LICTOR_PUSH_TOKEN_FILE=str(token))["push"]["status"] == "ok"


def test_pushing_that_is_refused(lictor: Lictor, cache: Cache) -> None:
    port = lictor.settings["LICTOR_BIND"].rpartition(":")[2]
    found = results(lictor, LICTOR_BIND=f"0.0.0.0:{port}")["push"]
    assert found["status"] == "warn"
    assert "LICTOR_PUSH_TOKEN_FILE" in found["mend"]


def test_the_web_server(lictor: Lictor, cache: Cache) -> None:
    assert results(lictor)["web server"]["status"] == "warn"
    socket = f"unix:{lictor.folder}/socket"
    lictor.start("serve", "--bind", socket).wait_for("serving on")
    eventually(lambda: results(lictor, LICTOR_BIND=socket)["web server"]["status"] == "ok")
    port = lictor.settings["LICTOR_BIND"].rpartition(":")[2]
    stranger = subprocess.Popen(
        [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1"],
        cwd=lictor.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while (found := results(lictor)["web server"])["status"] == "warn":
            assert stranger.poll() is None
    finally:
        stranger.terminate()
        stranger.wait(10)
    assert found["status"] == "fail"
    assert "answers 404" in found["detail"]


def test_too_few_open_files(lictor: Lictor, cache: Cache) -> None:
    limited = subprocess.run(
        ["sh", "-c", f"ulimit -n 150; exec {LICTOR} doctor"],
        cwd=lictor.folder,
        env=lictor.environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert limited.returncode == 1
    assert "fail  open files        150 are allowed, 250 are needed" in limited.stdout
    assert "ulimit -n" in limited.stdout


def test_wrong_settings_are_findings(lictor: Lictor) -> None:
    done = lictor.run("doctor", LICTOR_REVALIDATE="soon", CONSUL_HTTP_SSL="maybe")
    assert done.returncode == 1
    assert "fail  settings          LICTOR_REVALIDATE: " in done.stdout
    assert "fail  settings          CONSUL_HTTP_SSL: " in done.stdout
