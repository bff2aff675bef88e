"""Prints the manifest's JSON Schema: `python -m manifest_cache.manifest`."""

from __future__ import annotations

import json
import sys

from manifest_cache.manifest import manifest_json_schema

if __name__ == "__main__":
    sys.stdout.write(json.dumps(manifest_json_schema(), indent=2) + "\n")
