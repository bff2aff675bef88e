"""`python -m web.cli`: the `lictor` command where its script is not on the PATH."""

from web.cli import main

main(prog_name="lictor")
