"""The ground floor: actor kernel, session actor, commit writer, ports. No driver, no socket, no file."""
