"""What a fetch that went well brings: here alone, so that who stores it needs no client."""

from __future__ import annotations

from dataclasses import dataclass

from manifest_cache.manifest import ParsedManifest


@dataclass(frozen=True, slots=True)
class Fetched:
    """A good manifest, and the ETag under which its server knows it, if it said one."""

    parsed: ParsedManifest
    etag: str | None


@dataclass(frozen=True, slots=True)
class ManifestUnchanged:
    """The instance still has the manifest that was known under `etag`."""

    etag: str
