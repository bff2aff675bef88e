"""Consul's own API, asked directly: what modules and operators tell it, and what it then holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.faults.copies import MODULE_TAG, Copy
from tests.faults.replay import Key

Json = dict[str, Any]
HOST = "127.0.0.1"


class Catalog:
    """One Consul, reached at the address that `address` returns, with all rights.

    A faulty answer is an error here: the tests ask only while Consul can answer.
    """

    def __init__(self, address: Callable[[], str], token: str = "") -> None:
        self._address = address
        headers = {"X-Consul-Token": token} if token else {}
        self._client = httpx.Client(trust_env=False, timeout=20, headers=headers)

    def close(self) -> None:
        self._client.close()

    def put(self, path: str, body: object = None, **params: str) -> Any:
        answer = self._client.put(self._address() + path, json=body, params=params)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def delete(self, path: str) -> None:
        self._client.delete(self._address() + path).raise_for_status()

    def get(self, path: str, **params: str) -> Any:
        answer = self._client.get(self._address() + path, params=params)
        answer.raise_for_status()
        return answer.json()

    # What is told to it

    def register(self, copy: Copy) -> None:
        if copy.node:
            self._register_elsewhere(copy)
            return
        check = {"CheckID": f"service:{copy.id}", "TTL": "1h", "Status": copy.health}
        self.put(
            "/v1/agent/service/register",
            {**_service(copy), **({"Check": check} if copy.has_check else {})},
            **{"replace-existing-checks": "true"},
        )

    def deregister(self, copy: Copy) -> None:
        if copy.node:
            self.put("/v1/catalog/deregister", {"Node": copy.node, "ServiceID": copy.id})
        else:
            self.put(f"/v1/agent/service/deregister/{copy.id}")

    def turn(self, copy: Copy) -> None:
        """Turns the check of a copy to the copy's health."""
        if copy.node:
            self._register_elsewhere(copy)
        else:
            self.put(f"/v1/agent/check/update/service:{copy.id}", {"Status": copy.health})

    def maintain(self, copy: Copy, on: bool) -> None:
        self.put(f"/v1/agent/service/maintenance/{copy.id}", enable=str(on).lower())

    def maintain_node(self, on: bool) -> None:
        self.put("/v1/agent/maintenance", enable=str(on).lower())

    def _register_elsewhere(self, copy: Copy) -> None:
        check = {
            "Node": copy.node,
            "CheckID": f"service:{copy.id}",
            "Name": "told from outside",
            "Status": copy.health,
            "ServiceID": copy.id,
        }
        service = {name.replace("Name", "Service"): value for name, value in _service(copy).items()}
        said = {"Node": copy.node, "Address": HOST, "Service": service, "Check": check}
        self.put("/v1/catalog/register", said)

    # What it holds

    @property
    def own_node(self) -> str:
        return str(self.get("/v1/agent/self")["Config"]["NodeName"])

    def instances(self) -> dict[Key, Json]:
        """Every instance of a module, as Consul's own API tells it."""
        names = [name for name, tags in self.get("/v1/catalog/services").items() if MODULE_TAG in tags]
        entries = [entry for name in names for entry in self.get(f"/v1/health/service/{name}")]
        return dict(_instance(entry) for entry in entries if MODULE_TAG in entry["Service"]["Tags"])


def _service(copy: Copy) -> Json:
    return {
        "ID": copy.id,
        "Name": copy.module,
        "Address": HOST,
        "Port": copy.port,
        "Tags": list(copy.tags),
        "Meta": copy.meta,
    }


def _instance(entry: Json) -> tuple[Key, Json]:
    node, service = entry["Node"], entry["Service"]
    instance = {
        "address": service["Address"] or node["Address"],
        "port": service["Port"],
        "scheme": service["Meta"].get("scheme", "http"),
        "datacenter": node["Datacenter"],
        "tags": service["Tags"],
        "meta": service["Meta"],
        "health": _health(entry["Checks"]),
    }
    return Key("consul", service["Service"], node["Node"], service["ID"]), instance


def _health(checks: list[Json]) -> str:
    """The worst of the checks, where maintenance is the worst of all."""
    if any("maintenance" in check["CheckID"] for check in checks):
        return "maintenance"
    found = {check["Status"] for check in checks}
    return next((status for status in ("critical", "warning") if status in found), "passing")
