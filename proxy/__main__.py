"""``python -m proxy`` and the command ``csq-proxy``."""

from __future__ import annotations

import sys
from typing import NoReturn

from proxy.process import fill_standard_streams, leave_on_signals


def main() -> NoReturn:
    """Run the command in the arguments."""
    if sys.argv[1:2] in (["serve"], ["sandbox"]):
        leave_on_signals()  # first, since the imports below take a while
    from proxy.cli.console import fail, open_output  # noqa: PLC0415
    from proxy.errors import ConfigError, ListenError, OutputLost  # noqa: PLC0415

    fill_standard_streams()
    open_output()
    try:
        if sys.argv[1:2] == ["serve"]:
            from proxy.cli import serve  # noqa: PLC0415

            serve.main(sys.argv[2:])
        elif sys.argv[1:2] == ["health"]:
            from proxy.cli import health  # noqa: PLC0415

            health.main(sys.argv[2:])
        else:
            from proxy.cli import main as cli  # noqa: PLC0415 - the two above do without Typer

            cli.main()
    except ConfigError as exc:
        fail(exc.faults, 2)
    except (ListenError, OutputLost) as exc:
        fail((str(exc),), 1)
    except KeyboardInterrupt:  # Ctrl-C, in a command that has no use of its own for it
        sys.unraisablehook = lambda _: None  # of an object that was half made: Python can't close it
        sys.exit(130)
    except OSError as exc:
        if sys.argv[1:2] != ["--install-completion"]:
            raise
        # Typer writes a file into the home folder, and doesn't catch its errors.
        fail((f"--install-completion: can't write {exc.filename} ({exc.strerror})",), 1)
    sys.exit(0)


if __name__ == "__main__":
    main()
