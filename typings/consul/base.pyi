"""The API layer that both libraries share; where they differ, only what both have is named."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

class ConsulException(Exception): ...

class Response:
    _fields: ClassVar[tuple[str, ...]]
    def __init__(self, **fields: Any) -> None: ...

class HTTPClient(ABC):
    @abstractmethod
    def get(
        self,
        callback: Callable[[Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]] | None = ...,
        headers: dict[str, str] | None = ...,
        raw: bool = ...,
    ) -> Any: ...
    @abstractmethod
    def put(
        self,
        callback: Callable[[Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]] | None = ...,
        data: str | bytes | None = ...,
        headers: dict[str, str] | None = ...,
    ) -> Any: ...
    @abstractmethod
    def delete(
        self,
        callback: Callable[[Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]] | None = ...,
        data: str | bytes | None = ...,
        headers: dict[str, str] | None = ...,
    ) -> Any: ...
    @abstractmethod
    def post(
        self,
        callback: Callable[[Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]] | None = ...,
        data: str | bytes | None = ...,
        headers: dict[str, str] | None = ...,
    ) -> Any: ...
    @abstractmethod
    def close(self) -> None: ...

class _AgentService:
    def deregister(self, service_id: str, token: str | None = ...) -> Any: ...
    def maintenance(
        self, service_id: str, enable: str, reason: str | None = ..., token: str | None = ...
    ) -> Any: ...

class _AgentCheck:
    def deregister(self, check_id: str, token: str | None = ...) -> Any: ...
    def ttl_pass(self, check_id: str, notes: str | None = ..., token: str | None = ...) -> Any: ...
    def ttl_warn(self, check_id: str, notes: str | None = ..., token: str | None = ...) -> Any: ...
    def ttl_fail(self, check_id: str, notes: str | None = ..., token: str | None = ...) -> Any: ...

class _Agent:
    service: _AgentService
    check: _AgentCheck
    def services(self, token: str | None = ...) -> Any: ...
    def checks(self, token: str | None = ...) -> Any: ...

class _Catalog:
    def register(
        self,
        node: str,
        address: str,
        service: dict[str, Any] | None = ...,
        check: dict[str, Any] | None = ...,
        dc: str | None = ...,
        token: str | None = ...,
        node_meta: dict[str, str] | None = ...,
    ) -> Any: ...
    def deregister(
        self,
        node: str,
        service_id: str | None = ...,
        check_id: str | None = ...,
        dc: str | None = ...,
        token: str | None = ...,
    ) -> Any: ...

class _KV:
    def get(
        self,
        key: str,
        index: int | str | None = ...,
        recurse: bool = ...,
        wait: str | None = ...,
        token: str | None = ...,
        consistency: str | None = ...,
        keys: bool = ...,
        separator: str | None = ...,
        dc: str | None = ...,
    ) -> Any: ...
    def put(
        self,
        key: str,
        value: str | bytes | None,
        cas: int | None = ...,
        flags: int | None = ...,
        acquire: str | None = ...,
        release: str | None = ...,
        token: str | None = ...,
        dc: str | None = ...,
    ) -> Any: ...
    def delete(
        self,
        key: str,
        recurse: bool | None = ...,
        cas: int | None = ...,
        token: str | None = ...,
        dc: str | None = ...,
    ) -> Any: ...

class _Session:
    def create(
        self,
        name: str | None = ...,
        node: str | None = ...,
        checks: list[str] | None = ...,
        lock_delay: int = ...,
        behavior: str = ...,
        ttl: int | None = ...,
        dc: str | None = ...,
        token: str | None = ...,
    ) -> Any: ...
    def destroy(self, session_id: str, dc: str | None = ..., token: str | None = ...) -> Any: ...
    def info(
        self,
        session_id: str,
        index: int | str | None = ...,
        wait: str | None = ...,
        consistency: str | None = ...,
        dc: str | None = ...,
        token: str | None = ...,
    ) -> Any: ...
    def renew(self, session_id: str, dc: str | None = ..., token: str | None = ...) -> Any: ...

class _Txn:
    def put(self, payload: list[dict[str, Any]]) -> Any: ...

class Consul:
    http: HTTPClient
    token: str | None
    scheme: str
    dc: str | None
    consistency: str
    agent: _Agent
    catalog: _Catalog
    kv: _KV
    session: _Session
    txn: _Txn
