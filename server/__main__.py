"""The entry of `seatrial` and of `python -m server`: nothing of the folder that the user stands in is ever imported."""

import os
import sys

_OF_THE_CLI = ("-h", "--help", "--version")


def main() -> None:
    """Serve when the arguments are options only or start with `serve`, else run the command line; exit with its code.

    A person who types the bare name into a terminal is shown the help; a client that starts it so is served.

    Imports are inside, because they may come only after the user's folder has left the path, and because a server
    that is to answer quickly must not load the command line.
    """
    forget_user_folder()
    arguments = sys.argv[1:] or (["--help"] if _typed_by_hand() else [])
    if not arguments or arguments[0] == "serve" or (arguments[0].startswith("-") and arguments[0] not in _OF_THE_CLI):
        from server.cli.serve import serve

        sys.exit(serve(arguments[1:] if arguments[:1] == ["serve"] else arguments))
    from server.cli.main import run

    sys.exit(run(arguments))


def _typed_by_hand() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def forget_user_folder() -> None:
    """Take the current folder out of the import path, unless it is the source folder that we were started from."""
    try:
        here = os.path.realpath(os.getcwd())  # noqa: PTH109 - pathlib would be imported from the folder we must not trust
    except OSError:  # it was removed
        sys.path[:] = [entry for entry in sys.path if entry not in ("", ".")]
        return
    if here != os.path.dirname(os.path.dirname(os.path.realpath(__file__))):  # noqa: PTH120
        sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != here]


if __name__ == "__main__":
    main()
