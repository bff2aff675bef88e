"""What `helm test` runs, as its pod runs it, against a real Lictor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from discovery.consul.dev_agent import free_ports
from tests.cli.command import Lictor
from tests.helm.chart import pods, rendered, settings


def test_the_road_by_push_is_proved(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length")
    bind = f"127.0.0.1:{port}"
    lictor = Lictor(tmp_path, LICTOR_BIND=bind, LICTOR_PUSH_TOKEN_FILE=str(token), LICTOR_REGISTRIES="push")
    try:
        lictor.start("up", "--consul", "none").wait_for("ready after")
        done = road(f"http://{bind}", token)
        assert done.returncode == 0, done.stderr
        assert "came, was read and went" in done.stdout
        wrong = tmp_path / "wrong"
        wrong.write_text("no-token")
        refused = road(f"http://{bind}", wrong)
        assert refused.returncode != 0
        assert "401" in refused.stderr
    finally:
        lictor.close()


def road(url: str, token: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script of the chart's test pod with the settings that the pod gives it."""
    pod = pods([one for one in rendered({"push.tokenSecret": "push"}) if one["kind"] == "Pod"])[0]
    assert set(settings(pod)) == {"LICTOR_URL", "LICTOR_PUSH_TOKEN_FILE"}
    (container,) = pod["containers"]
    command = [sys.executable, *container["command"][1:], *container["args"]]
    environment = {**os.environ, "LICTOR_URL": url, "LICTOR_PUSH_TOKEN_FILE": str(token)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
