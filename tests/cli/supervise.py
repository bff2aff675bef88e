"""Runs the supervisor on the programs that a JSON list on the command line names: [[name, command...]...]."""

from __future__ import annotations

import asyncio
import json
import sys

from discovery.timing.backoff import Backoff
from web.cli.up.supervisor import Program, Supervisor


async def main() -> int:
    options = json.loads(sys.argv[1])
    programs = [Program(name=name, command=command) for name, *command in json.loads(sys.argv[2])]
    supervisor = Supervisor(
        lambda text: print(text, flush=True), backoff=lambda: Backoff(0.1, 0.4), **options
    )
    ended = await supervisor.run(programs)
    print("nobody" if ended is None else f"{ended.program.name} with {ended.status}", flush=True)
    return 0 if ended is None else ended.status


sys.exit(asyncio.run(main()))
