"""Writes the table of values into the chart's README from the comments `# --` of its values.yaml.

usage: .venv/bin/python scripts/helm_readme.py [--check]
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Imported so because it has no types, and may get some.
yaml: Any = importlib.import_module("yaml")
CHART = Path(__file__).resolve().parent.parent / "helm" / "lictor"
README = CHART / "README.md"
_HEAD = "| value | default | meaning |\n| --- | --- | --- |\n"
_LINE = re.compile(r"( *)(?:# -- (?P<text>.+)|(?P<name>\w+):.*)")


def rows() -> Iterator[tuple[str, Any, str]]:
    """Each value that has a comment: its path, its default, and what it means."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    path: list[str] = []
    text = ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        if found["text"]:
            text = found["text"]
            continue
        path = [*path[: len(found[1]) // 2], found["name"]]
        if text:
            value = values
            for name in path:
                value = value[name]
            yield ".".join(path), value, text
            text = ""


def text() -> str:
    """The README with the table as it should be."""
    lines = [f"| `{path}` | `{json.dumps(value)}` | {said} |\n" for path, value, said in rows()]
    before, _, _ = README.read_text().partition(_HEAD)
    return before + _HEAD + "".join(lines)


def main() -> int:
    wanted = text()
    if "--check" in sys.argv:
        return int(README.read_text() != wanted)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
