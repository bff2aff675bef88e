"""Checks names, addresses, tags and meta against what registries and DNS can carry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

MAX_LABEL = 63
MAX_HOST = 253
MAX_ASKED = 255
"""Characters of a name or an id that is asked for: far longer ones fit into no request and no SQL index."""
MAX_META_PAIRS = 64
MAX_META_KEY = 128
MAX_META_VALUE = 512
"""In bytes of UTF-8, for so Consul counts."""

_LABEL_CHARACTERS = re.compile(r"[A-Za-z0-9-]")
_META_KEY = re.compile(r"[A-Za-z0-9_-]+")
_RESERVED_META_PREFIX = "consul-"
# A path with one of these between its slashes is another one to every server.
_PARTS_LEFT_OUT = {"", ".", ".."}


def label_fault(text: object) -> str | None:
    """Why DNS cannot carry this name as one label (RFC 1123), or None.

    >>> label_fault("my_module")
    "'my_module' holds '_': a DNS label (RFC 1123) has only the letters a-z, digits and hyphens"
    """
    if not isinstance(text, str):
        return f"{text!r} is no text"
    if not text:
        return f"is empty: a DNS label (RFC 1123) has 1 to {MAX_LABEL} characters"
    foreign = _LABEL_CHARACTERS.sub("", text)
    if foreign:
        allowed = "only the letters a-z, digits and hyphens"
        return f"{text!r} holds {foreign[0]!r}: a DNS label (RFC 1123) has {allowed}"
    if text.startswith("-") or text.endswith("-"):
        return f"{text!r}: a DNS label (RFC 1123) neither begins nor ends with a hyphen"
    if len(text) > MAX_LABEL:
        return f"{text!r} has {len(text)} characters: a DNS label (RFC 1123) has at most {MAX_LABEL}"
    return None


def address_fault(text: object) -> str | None:
    """Why this is no address under which others reach the module, or None."""
    if not isinstance(text, str):
        return f"{text!r} is no text"
    try:
        address = ip_address(text)
    except ValueError:
        return _host_fault(text)
    if "%" in text:
        return (
            f"{text} names an interface, which only this machine knows: give an address that others can use"
        )
    if address.is_unspecified:
        return f"{text} is where a server listens, not where it is found: give the address that others use"
    return None


def _host_fault(text: str) -> str | None:
    labels = text.removesuffix(".").split(".")
    if len(text) > MAX_HOST or any(label_fault(label) for label in labels) or labels[-1].isdigit():
        return f"{text!r} is neither an IP address nor a host name (without scheme, port and brackets)"
    return None


def port_fault(port: object) -> str | None:
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        return f"must be a whole number from 1 to 65535 (got {port!r})"
    return None


def manifest_port_fault(text: object) -> str | None:
    """What is wrong with the meta `manifest_port`, a port in digits; None if nothing is."""
    if isinstance(text, str) and re.fullmatch(r"[1-9][0-9]{0,4}", text) and int(text) <= 65535:
        return None
    return f"must be a port from 1 to 65535 in digits (got {text!r})"


def text_fault(text: object) -> str | None:
    """Why this cannot be an id or a tag, or None: any text does that has something to print."""
    if not isinstance(text, str):
        return f"{text!r} is no text"
    if not text.strip():
        return "is empty"
    if not text.isprintable():
        return f"{text!r} holds a character that cannot be printed"
    return None


def asking_fault(text: str) -> str | None:
    """Why a registry cannot be asked for what has this name or id, though it may take it, or None.

    >>> asking_fault("a//b")
    "'a//b' has an empty part, `.` or `..` between slashes, which no request can carry"
    """
    if not text.isprintable() or "\ufffd" in text:
        return f"{text[:MAX_ASKED]!r} holds a character that cannot be printed"
    if len(text) > MAX_ASKED:
        return f"{text[:MAX_ASKED]!r}… has {len(text)} characters: at most {MAX_ASKED} are taken"
    if not _PARTS_LEFT_OUT.isdisjoint(text.removesuffix("/").split("/")):
        return f"{text!r} has an empty part, `.` or `..` between slashes, which no request can carry"
    return None


def path_fault(path: object) -> str | None:
    """Why this is no path of a URL, or None."""
    if not isinstance(path, str) or not path.startswith("/") or path.startswith("//"):
        return f'must be a path that begins with one "/" (got {path!r})'
    if not path.isascii() or not path.isprintable() or " " in path or "#" in path:
        return f"{path!r} holds a character that must be percent-encoded in a path"
    return None


def tag_faults(tags: object) -> list[str]:
    """Every fault of the tags. Any text is a tag; one that is no label is just not found through DNS."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        return [f"tags: give a list of texts (got {tags!r})"]
    return [f"tags: {fault}" for tag in tags if (fault := text_fault(tag))]


def meta_faults(meta: object) -> list[str]:
    """Every limit of Consul's service meta that this breaks."""
    if not isinstance(meta, Mapping):
        return [f"meta: give a mapping of texts to texts (got {meta!r})"]
    faults = [f"meta: {fault}" for key, value in meta.items() if (fault := _pair_fault(key, value))]
    if len(meta) > MAX_META_PAIRS:
        faults.append(
            f"meta: has {len(meta)} pairs, those of the library counted in, but Consul takes {MAX_META_PAIRS}"
        )
    return faults


def _pair_fault(key: object, value: object) -> str | None:
    if not isinstance(key, str) or not isinstance(value, str):
        return f"{key!r}: {value!r} is not a text with a text"
    if not _META_KEY.fullmatch(key):
        return f"key {key!r} may hold only the letters a-z, digits, hyphens and underscores"
    if key.startswith(_RESERVED_META_PREFIX):
        return f"key {key!r}: Consul keeps the prefix {_RESERVED_META_PREFIX!r} for itself"
    if len(key) > MAX_META_KEY:
        return f"key {key!r} has {len(key)} characters, but Consul takes {MAX_META_KEY}"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return f"value of {key!r} holds half a character (got {value!r}): was it text in another encoding?"
    if size > MAX_META_VALUE:
        return f"value of {key!r} has {size} bytes, but Consul takes {MAX_META_VALUE}"
    return None
