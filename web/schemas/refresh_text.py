"""Says in sentences what a refresh does."""

from __future__ import annotations

from manifest_cache.ledger.ledger import Refresh


def told(refresh: Refresh) -> str:
    """What happens now, and what does not and why."""
    return " ".join([_asked(refresh), *_pushed(refresh.pushed), *_not_well(refresh.not_well)])


def _asked(refresh: Refresh) -> str:
    if refresh.asked:
        return f"The manifest of {_instances(refresh.asked)} is fetched now."
    if refresh.pushed or refresh.not_well:
        return "No manifest is fetched."
    return "No manifest is fetched: the module has no instance."


def _pushed(count: int) -> list[str]:
    said = f"{_instances(count)} pushed the manifest when registering, and must register again to change it."
    return [said] if count else []


def _not_well(count: int) -> list[str]:
    verb = "is" if count == 1 else "are"
    return [f"{_instances(count)} {verb} not healthy, and asked once healthy again."] if count else []


def _instances(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"
