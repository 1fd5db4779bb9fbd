"""The command line: `sojourn serve`, `record`, `ls`, `show`, `tail`, `compare`.

A command's module is imported when that command runs, so none pays for another's libraries.
"""

import cyclopts

app = cyclopts.App(
    name="sojourn",
    help="Keeps long test sessions alive: durable, watchable, comparable.",
)
app.command(f"{__name__}.record:record", name="record", help="Run a command and record it as a session.")
app.command(
    f"{__name__}.serve:serve", name="serve", help="Own a data folder and serve its sessions over HTTP."
)
app.command(f"{__name__}.look:ls", name="ls", help="List sessions, newest first.")
app.command(f"{__name__}.look:show", name="show", help="Show one session.")
app.command(
    f"{__name__}.look:tail",
    name="tail",
    help="Print the last log lines and results of a session, or follow them.",
)
app.command(f"{__name__}.look:compare", name="compare", help="Compare two sessions.")


def main() -> None:
    """The entry point. A command returns its exit code; 2 is a mistake on the command line."""
    app()
