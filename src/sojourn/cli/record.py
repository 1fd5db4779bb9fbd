"""`sojourn record`: any command becomes a session."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..actors.errors import InvalidSettings
from ..record.main import main, refused
from ..record.options import RecordError, RecordOptions
from ..runtime.settings_load import load_settings


def record(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    plan: str | None = None,
    title: str | None = None,
    meta: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    server: str | None = None,
    token: str | None = None,
    data: Path | None = None,
    json: Path | None = None,
    user: str | None = None,
    resume: str | None = None,
    junit: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    time_limit: str | None = None,
    config: Path | None = None,
) -> int:
    """Run a command as a session: its output, its resources, its exit, and each test of its pytest, live.

    Write the command after `--`. Its output passes through; what sojourn says goes to stderr. The command does not
    wait for a server: what cannot be delivered yet is kept in the data folder's spool. The exit code is the
    command's own, 124 where it ran over its time limit, 125 where nothing could be recorded and the command was not run,
    130 after Ctrl-C.

    Parameters
    ----------
    command
        The command and its arguments.
    plan
        Sessions of one plan are compared with each other. Default: the command's first two words.
    title
        Default: the command line.
    meta
        `key=value`, kept with the session; may be given several times.
    server
        The address of a server. Default: $SOJOURN_SERVER, else the server of the data folder, which is started if need be.
    token
        The server's token. Rather give it as SOJOURN_TOKEN: others on this machine can read a command line.
    data
        The data folder. Default: $SOJOURN_DATA, else the user's data folder.
    json
        Write a summary to this file, as one JSON document.
    user
        Whose session it is. Default: you.
    resume
        The id of a session that has not ended and whose recorder is gone: it goes on. A pytest runs the cases that
        have no result; any other command runs whole.
    junit
        A pattern of JUnit XML files, as in `build/test-results/**/*.xml`; may be given several times. For a test runner
        other than pytest: the cases in files that are written while the command runs become results.
    time_limit
        As in `8h`, `1h30m` or `90s`: then the command is ended, by SIGTERM and 10 seconds later by SIGKILL, and the session
        has failed. Where the recorder is gone by then, the server ends the session a minute later.
    config
        The settings file. Default: $SOJOURN_CONFIG, else sojourn.toml here, else the user's.

    Returns:
        The exit code.
    """
    try:
        flags = {"data_dir": data, "server": server, "token": token}
        loaded = load_settings(config=config, flags=flags)
    except InvalidSettings as error:
        return refused(RecordError(str(error)), json)
    settings = loaded.settings
    options = RecordOptions(
        command=command,
        plan=plan,
        title=title,
        meta=meta,
        server=settings.server,
        token=settings.token,
        data_dir=settings.data_dir,
        json_path=json,
        user_id=user,
        config=loaded.file,
        resume=resume,
        junit=junit,
        time_limit=time_limit,
    )
    return main(options)
