"""`helm test`: registers a module by push, reads it back, and takes it away."""

import os
import sys
from pathlib import Path

import httpx

NAME, ID = "lictor-helm-test", "lictor-helm-test-1"
token = Path(os.environ["LICTOR_PUSH_TOKEN_FILE"]).read_text().strip()
headers = {"Authorization": f"Bearer {token}"}
body = {
    "name": NAME,
    "id": ID,
    "address": "127.0.0.1",
    "port": 9,
    "manifest": {"name": NAME, "version": "1.0.0"},
}

with httpx.Client(
    base_url=os.environ["LICTOR_URL"] + "/api/v1", timeout=10, headers=headers, trust_env=False
) as lictor:
    lictor.post("/modules/register", json=body).raise_for_status()
    try:
        found = lictor.get(f"/modules/{NAME}?include=manifest").raise_for_status().json()
        assert found["manifest"]["version"] == "1.0.0", found
        assert [one["id"] for one in found["instances"]] == [ID], found
    finally:
        lictor.delete(f"/modules/{NAME}/instances/{ID}").raise_for_status()
    left = lictor.get(f"/modules/{NAME}").raise_for_status().json()
    assert left["instances"] == [], left
sys.stdout.write(f"{NAME} came, was read and went\n")
