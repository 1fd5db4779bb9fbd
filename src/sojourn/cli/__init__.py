"""The command line: `sojourn serve`, `record`, `ls`, `show`, `tail`, `compare`, `top`, `export`, `accept-loss`,
`quarantine`, `rebuild-catalog`, `settings`, `doctor`.

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
app.command(f"{__name__}.top:top", name="top", help="Watch a running server: its parts, sessions and stalls.")
app.command(f"{__name__}.export:export", name="export", help="Write a session as JSON, NDJSON or JUnit XML.")
app.command(
    f"{__name__}.accept_loss:accept_loss",
    name="accept-loss",
    help="Let a session that has lost events go on without them.",
)
app.command(f"{__name__}.quarantine:app", name="quarantine", help="What crashed a session and is set aside.")
app.command(
    f"{__name__}.rebuild_catalog:rebuild_catalog",
    name="rebuild-catalog",
    help="Build what lists are read from anew.",
)
app.command(
    f"{__name__}.settings:settings",
    name="settings",
    help="Show every setting and where its value comes from.",
)
app.command(f"{__name__}.doctor:doctor", name="doctor", help="Look for what is wrong, and say what to do.")


def main() -> None:
    """The entry point. A command returns its exit code; 2 is a mistake on the command line."""
    app()
