"""Writes what stands below each command's help: an example and the exit statuses."""

from __future__ import annotations


def epilog(*examples: str, status: str = "") -> str:
    """Examples as they are typed; `status` only where a command's exit statuses are special."""
    # \b keeps click from filling the lines of the paragraph that follows.
    lines = "\n".join(f"  {example}" for example in examples)
    heading = "Example" if len(examples) == 1 else "Examples"
    text = f"\b\n{heading}:\n{lines}"
    return f"{text}\n\nExit status: {status}" if status else text
