"""Runs the supervisor on the programs that a JSON list on the command line names: [[name, command...]...]."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from discovery.timing.backoff import Backoff
from web.cli.up.supervisor import Program, Supervisor


def say(text: str) -> None:
    # One write a line: the programs print into the same pipe, and CI may run Python unbuffered.
    os.write(1, f"{text}\n".encode())


async def main() -> int:
    options = json.loads(sys.argv[1])
    programs = [Program(name=name, command=command) for name, *command in json.loads(sys.argv[2])]
    supervisor = Supervisor(say, backoff=lambda: Backoff(0.1, 0.4), **options)
    ended = await supervisor.run(programs)
    say("nobody" if ended is None else f"{ended.program.name} with {ended.status}")
    return 0 if ended is None else ended.status


sys.exit(asyncio.run(main()))
