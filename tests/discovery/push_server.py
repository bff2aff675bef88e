"""A server that speaks Lictor's push calls and nothing else: what was sent to it can be looked at."""

from __future__ import annotations

import threading
from typing import Any, Self

from flask import Flask, Response, jsonify, make_response, request
from werkzeug.serving import WSGIRequestHandler, make_server

PROBLEM = "application/problem+json"


class PushServer:
    """Takes registrations, heartbeats and farewells on a free port, or on a given one.

    `refusal` is what every call is answered with while it is set; `token` must be borne if it is
    not empty. It can be stopped and started again on the same port, and forgets nothing by that.
    """

    def __init__(self, *, token: str = "", heartbeat_interval: float | None = None) -> None:
        self.token = token
        self.heartbeat_interval = heartbeat_interval
        self.refusal: Response | None = None
        self.bodies: list[dict[str, Any]] = []
        self.instances: dict[tuple[str, str], dict[str, Any]] = {}
        self.beats: list[dict[str, Any]] = []
        self._app = Flask(__name__)
        self._app.before_request(self._guard)
        self._app.add_url_rule("/api/v1/modules/register", "register", self._register, methods=["POST"])
        self._app.add_url_rule("/api/v1/modules/<name>/heartbeat", "beat", self._beat, methods=["POST"])
        self._app.add_url_rule(
            "/api/v1/modules/<name>/instances/<id>", "leave", self._leave, methods=["DELETE"]
        )
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = make_server(
            "127.0.0.1", self.port, self._app, threaded=True, request_handler=_QuietHandler
        )
        self.port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def health(self, name: str) -> list[str]:
        return [instance["health"] for key, instance in self.instances.items() if key[0] == name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _guard(self) -> Response | None:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return problem(401, detail="the token is wrong")
        return self.refusal

    def _register(self) -> Response:
        body = request.get_json()
        self.bodies.append(body)
        self.instances[body["name"], body["id"]] = {**body, "health": "passing"}
        interval = self.heartbeat_interval or body["heartbeat_interval"]
        answer = {"instance": body, "index": len(self.bodies), "heartbeat_interval": interval}
        return make_response(jsonify(answer), 201)

    def _beat(self, name: str) -> Response:
        body = request.get_json()
        instance = self.instances.get((name, body["id"]))
        if instance is None:
            return problem(404, detail="unknown; register it again")
        instance["health"] = body["health"]
        self.beats.append(body)
        return make_response("", 204)

    def _leave(self, name: str, id: str) -> Response:
        if self.instances.pop((name, id), None) is None:
            return problem(404, detail="unknown")
        return make_response("", 204)


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


def problem(status: int, **fields: Any) -> Response:
    with Flask(__name__).app_context():
        response = jsonify({"status": status, **fields})
    response.status_code = status
    response.content_type = PROBLEM
    return response
