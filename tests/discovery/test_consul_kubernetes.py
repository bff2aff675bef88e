"""What consul-k8s writes into the catalog, on nodes that have no agent, and what the watcher takes of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from discovery.base import Health
from discovery.consul.call import Call
from discovery.consul.client import ConsulClient
from discovery.consul.watch.watcher import ConsulWatcher
from tests.consul_server import RunningConsul, eventually, put_json
from tests.watching import Watching

POD = "10.244.1.23"


@pytest.fixture
def name(client: ConsulClient) -> Iterator[str]:
    name = f"pods-{uuid.uuid4().hex[:8]}"
    yield name
    for node in (f"{name}-virtual", "k8s-sync"):
        client.send(put_json("/v1/catalog/deregister", {"Node": node}))


@pytest.fixture
def watching(consul: RunningConsul) -> Iterator[Watching]:
    with Watching(ConsulWatcher(consul.config())) as watching:
        eventually(lambda: watching.updates)
        yield watching


def injected(name: str, pod: str, status: str = "passing", **fields: Any) -> Call[Any]:
    """A pod's service as connect-inject registers it: on a synthetic node, with its readiness as a check."""
    service = {
        "ID": f"{pod}-{name}",
        "Service": name,
        "Address": POD,
        "Port": 8080,
        "Tags": ["module", "v1"],
        "Meta": {
            "pod-name": pod,
            "pod-uid": "5a3ee5a5-4fd9-4fb1-8d2f-1b2a9c0e6b5a",
            "k8s-namespace": "platform",
            "k8s-service-name": name,
            "version": "1.2.0",
        },
        **fields,
    }
    check = {
        "CheckID": f"platform/{service['ID']}",
        "Name": "Kubernetes Readiness Check",
        "Type": "kubernetes-readiness",
        "Status": status,
        "ServiceID": service["ID"],
        "Output": "Pod is ready." if status == "passing" else "Pod is not ready.",
    }
    node = {"Node": f"{name}-virtual", "Address": POD, "NodeMeta": {"synthetic-node": "true"}}
    return put_json("/v1/catalog/register", {**node, "Service": service, "Check": check})


def test_an_injected_pod_is_taken_and_its_proxy_is_not(
    watching: Watching, client: ConsulClient, name: str
) -> None:
    proxy = {
        "DestinationServiceName": name,
        "DestinationServiceID": f"pod-1-{name}",
        "LocalServicePort": 8080,
    }
    client.send(injected(f"{name}-sidecar-proxy", "pod-1", Kind="connect-proxy", Port=20000, Proxy=proxy))
    for kind in ("mesh-gateway", "ingress-gateway", "terminating-gateway"):
        client.send(injected(f"{name}-{kind}", "pod-2", Kind=kind, Port=8443))
    client.send(injected(name, "pod-1"))
    eventually(lambda: watching.of(name))
    (instance,) = watching.of(name).values()
    assert (instance.address, instance.port, instance.node) == (POD, 8080, f"{name}-virtual")
    assert instance.meta["pod-name"] == "pod-1"
    assert instance.meta["version"] == "1.2.0"
    assert instance.health == Health.PASSING
    for kind in ("sidecar-proxy", "mesh-gateway", "ingress-gateway", "terminating-gateway"):
        assert not watching.of(f"{name}-{kind}"), kind


def test_readiness_is_health(watching: Watching, client: ConsulClient, name: str) -> None:
    for status in ("critical", "passing", "critical"):
        client.send(injected(name, "pod-1", status))
        eventually(lambda: [str(one.health.value) for one in watching.of(name).values()] == [status])  # noqa: B023


def test_a_synced_service_is_taken(watching: Watching, client: ConsulClient, name: str) -> None:
    """As sync-catalog registers a Service of Kubernetes: on one node for all, without a check."""
    service = {
        "ID": f"{name}-8d1f0a2c",
        "Service": name,
        "Address": "10.96.12.4",
        "Port": 80,
        "Tags": ["k8s", "module"],
        "Meta": {"external-source": "kubernetes", "external-k8s-ns": "platform", "port-http": "80"},
    }
    body = {"Node": "k8s-sync", "Address": "127.0.0.1", "NodeMeta": {"external-source": "kubernetes"}}
    client.send(put_json("/v1/catalog/register", {**body, "Service": service}))
    eventually(lambda: watching.of(name))
    (instance,) = watching.of(name).values()
    assert (instance.address, instance.port, instance.node) == ("10.96.12.4", 80, "k8s-sync")
    assert instance.meta["external-k8s-ns"] == "platform"
    assert instance.health == Health.PASSING
