"""`sojourn record`: any command becomes a session."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..record.main import main
from ..record.options import RecordOptions
from ..runtime.paths import default_data_dir


def record(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    plan: str | None = None,
    title: str | None = None,
    meta: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    server: Annotated[str | None, Parameter(env_var="SOJOURN_SERVER", show_env_var=True)] = None,
    token: Annotated[str | None, Parameter(env_var="SOJOURN_TOKEN", show_env_var=True)] = None,
    data: Path | None = None,
    json: Path | None = None,
    user: str | None = None,
) -> int:
    """Run a command as a session: its output, its resources, its exit, and each test of its pytest, live.

    Write the command after `--`. Its output passes through; what sojourn says goes to stderr. The exit code is the
    command's own, 125 where sojourn itself failed, 130 after Ctrl-C.

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
        The address of a server. Default: the server of the data folder, which is started if need be.
    token
        The server's token. Rather give it as SOJOURN_TOKEN: others on this machine can read a command line.
    data
        The data folder. Default: $SOJOURN_DATA, else the user's data folder.
    json
        Write a summary to this file, as one JSON document.
    user
        Whose session it is. Default: you.

    Returns:
        The exit code.
    """
    options = RecordOptions(
        command=command,
        plan=plan,
        title=title,
        meta=meta,
        server=server,
        token=token,
        data_dir=data if data is not None else default_data_dir(),
        json_path=json,
        user_id=user,
    )
    return main(options)
