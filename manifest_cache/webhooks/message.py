"""Makes the signed request that carries one event.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from discovery import __version__
from manifest_cache.ledger.event_log import rfc3339
from manifest_cache.storage.models import EventRow
from manifest_cache.webhooks.config import Receiver


def body(event: EventRow) -> bytes:
    """The event as the API shows it, in the envelope that the specification recommends."""
    message = {"type": event.type, "timestamp": rfc3339(event.at), "data": _shown(event)}
    return json.dumps(message, separators=(",", ":")).encode()


def message_id(series: str, event: EventRow) -> str:
    """The same for every try to deliver this event to this receiver, and for no other message."""
    return f"{series}_{event.index}"


def headers(receiver: Receiver, id_: str, seconds: int, content: bytes) -> list[tuple[str, str]]:
    """All headers of a try that is made `seconds` after 1970, the signatures among them."""
    return [
        ("Host", receiver.url.authority),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(content))),
        ("Connection", "close"),
        ("User-Agent", f"lictor/{__version__}"),
        ("webhook-id", id_),
        ("webhook-timestamp", str(seconds)),
        ("webhook-signature", " ".join(_signature(key, id_, seconds, content) for key in receiver.keys)),
    ]


def _signature(key: bytes, id_: str, seconds: int, content: bytes) -> str:
    digest = hmac.digest(key, f"{id_}.{seconds}.".encode() + content, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def _shown(event: EventRow) -> dict[str, Any]:
    return {
        "index": event.index,
        "at": rfc3339(event.at),
        "type": event.type,
        "module": event.module,
        "instance": event.instance,
        "registry": event.registry_name,
        "data": event.data,
    }
