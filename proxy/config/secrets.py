"""Where secrets come from: files and commands. Also whether other users can read a file that holds a secret.

The errors are for people, and never show the content of a file or the output of a command.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from proxy.blocking import NoThread
from proxy.config.files import lost_backslash, read
from proxy.config.pasted import value_of
from proxy.config.trust import PRIVATE, Untrusted
from proxy.secret import Secret

if sys.platform == "win32":
    from proxy.config import acl
else:
    from proxy.config.trust import chmod_for

AT_ONCE = 8
"""The most sources that are read side by side."""
COMMAND_TIMEOUT_S = 10.0
_LONGEST = 65_536
_CREDENTIALS = frozenset(("$CREDENTIALS_DIRECTORY", "${CREDENTIALS_DIRECTORY}"))  # systemd.exec(5)
_MOUNTINFO = Path("/proc/self/mountinfo")
_MEMORY_FILE_SYSTEMS = frozenset(("tmpfs", "ramfs"))
# On some systems these are memory, on others a disk; on all of them every user can write there.
_SHARED_FOLDERS = frozenset(("/tmp", "/var/tmp", "/dev/shm"))  # noqa: S108 - named to be excluded
_TASKKILL = f"{os.environ.get('SYSTEMROOT', 'C:/Windows')}/System32/taskkill.exe"
_MAY_BE_A_SECRET = re.compile(r"(?=.*[0-9])[A-Za-z0-9+/=_-]{16,}\s*\Z")
"""A relative path that may be a secret, put in the place of its file's path."""
_STARTING_S = 2.0
"""How long the end of the process waits for a command that is being started; a program's disk may hang."""
_running: set[subprocess.Popen[bytes]] = set()
_starting = threading.Lock()  # held until a command that was started is in `_running`
_turns: dict[Source, threading.Lock] = {}
_no_more = threading.Event()  # the process ends: no command starts any more


class SecretUnusable(ValueError):
    """A secret can't be fetched. The message says why and what to do; it doesn't name the key."""


@dataclass(frozen=True, slots=True)
class Source:
    """A place that gives a secret: a file, or a command and its working folder (None: the current one)."""

    file: Path | None = None
    command: tuple[str, ...] = ()
    folder: Path | None = None

    def read(self) -> Secret:
        """The secret that the source gives now. Blocks; one read of a source at a time, others wait for it.

        Raises SecretUnusable.
        """
        with _turns.setdefault(self, threading.Lock()):
            read_at = time.monotonic()
            text = read_file(self.file) if self.file else run_command(self.command, self.folder)
            return Secret(text, self, read_at)


def in_file(path: Path, base: Path) -> Source:
    """The source for a secret's file; ``base`` is the folder of a relative path.

    Raises SecretUnusable; without the path, where no file is there and the path may be the secret itself.
    """
    if fault := lost_backslash(str(path)):
        raise SecretUnusable(fault)
    given = path.relative_to(base).as_posix() if path.is_relative_to(base) else ""
    if _MAY_BE_A_SECRET.match(given):
        try:
            path.stat()
        except OSError:
            raise SecretUnusable(
                f"there is no such file in {base}; it isn't shown here, since it may be the secret itself;"
                " give the path of a file that holds the secret"
            ) from None
    return Source(file=path)


def read_all(sources: Iterable[Source]) -> dict[Source, Secret | SecretUnusable]:
    """What each source gives, or why it gives nothing. Blocks; reads `AT_ONCE` sources side by side.

    An equal source is read once. Raises `NoThread`.
    """
    waiting = list(dict.fromkeys(sources))[::-1]
    found: dict[Source, Secret | SecretUnusable] = {}
    errors: list[Exception] = []

    def read_some() -> None:
        with contextlib.suppress(IndexError):  # no source waits any more
            while not errors:
                source = waiting.pop()
                try:
                    found[source] = source.read()
                except SecretUnusable as unusable:
                    found[source] = unusable
                except Exception as error:  # noqa: BLE001 - raised below
                    errors.append(error)

    threads = [threading.Thread(target=read_some, daemon=True) for _ in waiting[:AT_ONCE]]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        errors.append(NoThread(errno.EAGAIN, str(error)))
    for thread in threads:
        if thread.ident is not None:
            thread.join()
    if errors:
        raise errors[0]
    return found


def read_file(path: Path) -> str:
    """The secret in a file, without a final line break. Raises SecretUnusable."""
    try:
        content, status = read(path, _LONGEST + 1)
    except NoThread:
        raise
    except FileNotFoundError:
        raise SecretUnusable(absence(path)) from None
    except Untrusted as untrusted:
        raise SecretUnusable(str(untrusted)) from None
    except OSError as error:
        raise SecretUnusable(f"can't read {path}: {error.strerror}") from None
    except ValueError:  # a NUL character
        raise SecretUnusable("must be a path") from None
    if fault := exposure(path, status):
        raise SecretUnusable(fault)
    return _only_line(content, str(path))


def absence(path: Path) -> str:
    """The fault of a file that doesn't exist."""
    if not _CREDENTIALS.isdisjoint(path.parts):  # `files.absolute` leaves the name where it isn't set
        return (
            f"there is no file {path}: the variable CREDENTIALS_DIRECTORY isn't set;"
            " systemd sets it for a service that has LoadCredential="
        )
    return f"there is no file {path}"


def run_command(command: Sequence[str], folder: Path | None = None) -> str:
    """The output of a command, without a final line break; no shell, at most 10 s.

    ``folder`` is the working directory, None for the current one. The command gets a process group of its
    own, which is ended at the limit and when the proxy ends: a password manager's helpers would live on.
    Raises SecretUnusable.
    """
    shown = shlex.join(command[:1])
    process = _started(command, folder, shown)
    content = _output(process, shown)
    if process.returncode and len(content) <= _LONGEST:
        raise SecretUnusable(f"{shown} ended with exit code {process.returncode}; run it by hand to see why")
    return _only_line(content, f"the output of {shown}")


def _started(command: Sequence[str], folder: Path | None, shown: str) -> subprocess.Popen[bytes]:
    """The command, which runs now and is known to `_kill_running`. Raises SecretUnusable."""
    with _starting:
        if _no_more.is_set():
            raise SecretUnusable(f"{shown} wasn't run: the proxy ends")
        try:
            process = subprocess.Popen(  # noqa: S603 - the owner of the configuration chose it
                [_program(command[0], folder), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                # A session, too: a program that asks for a password on the terminal fails and doesn't wait.
                start_new_session=True,
                creationflags=_no_window(),
            )
        except FileNotFoundError:
            if len(command) == 1 and " " in command[0]:  # a whole line, which may hold a secret
                raise SecretUnusable(
                    'must be a program and its arguments, each a word of its own: ["op", "read", "..."]'
                ) from None
            raise SecretUnusable(f"there is no program {shown}; give its full path") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a valid command"
            raise SecretUnusable(f"can't run {shown}: {reason}") from None
        _running.add(process)
    return process


def _program(word: str, folder: Path | None) -> str:
    """The program to start. By itself, Windows looks for ``.exe`` alone, and not in the command's folder."""
    if sys.platform != "win32":
        return word
    if not os.path.dirname(word):  # noqa: PTH120 - as it is written
        return shutil.which(word) or word
    path = str((folder or Path()) / word)
    endings = os.environ.get("PATHEXT", ".EXE;.BAT;.CMD").split(os.pathsep)
    return next((path + end for end in (*endings, "") if Path(path + end).is_file()), path)


def _no_window() -> int:
    """The flags of a process with a console of its own, which isn't shown. On Windows alone."""
    return getattr(subprocess, "CREATE_NO_WINDOW", 0)


def _output(process: subprocess.Popen[bytes], shown: str) -> bytes:
    """The output of the command, at most one byte more than a secret may have. The command has ended then."""
    printed: list[bytes] = []
    ends_at = time.monotonic() + COMMAND_TIMEOUT_S
    # In a thread, since a child of the command may hold the pipe open for longer than the limit.
    reader = threading.Thread(target=_read, args=(process.stdout, printed), daemon=True)
    in_time = False
    try:
        reader.start()
        reader.join(COMMAND_TIMEOUT_S)
        if not reader.is_alive():
            if len(printed[0]) <= _LONGEST:
                process.wait(max(0.0, ends_at - time.monotonic()))
            in_time = True
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where a signal raises SystemExit
        _end_group(process)
        _running.discard(process)
    process.wait()
    if not in_time:
        raise SecretUnusable(f"{shown} took longer than {COMMAND_TIMEOUT_S:g} s")
    return printed[0]


@atexit.register
def _kill_running() -> None:
    """Kill running commands at exit: a reload's thread, which waits for one, ends with the process."""
    _no_more.set()
    if _starting.acquire(timeout=_STARTING_S):
        _starting.release()
    for process in tuple(_running):
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and its children. After the wait for a command, its number may be another group's."""
    if process.returncode is not None:
        return
    if sys.platform == "win32":
        subprocess.run(  # noqa: S603
            (_TASKKILL, "/T", "/F", "/PID", str(process.pid)),
            check=False,
            capture_output=True,
            creationflags=_no_window(),
        )
    else:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _read(pipe: BinaryIO, printed: list[bytes]) -> None:
    with pipe:
        printed.append(pipe.read(_LONGEST + 1))


def _only_line(content: bytes, where: str) -> str:
    if len(content) > _LONGEST:
        raise SecretUnusable(f"{where} is too long for a secret")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SecretUnusable(f"{where} isn't UTF-8 text") from None
    try:
        return value_of(text)
    except ValueError as wrong:
        raise SecretUnusable(f"{where} {wrong}") from None


def exposure(path: Path, status: os.stat_result | None = None) -> str | None:
    """The fault of a file with a secret that other users can read or change; None for a private file.

    ``status`` is that of the file as it was read, None: the present one. A file on a memory file system or in
    a volume of Kubernetes passes: the platform chose its mode. So does anything but a regular file. The group
    may read a file that isn't ours: we do so. A group of this process may read root's file.
    """
    if sys.platform == "win32":
        return acl.exposure_of(path)
    status = status or path.stat()
    mode = stat.S_IMODE(status.st_mode)
    exposed = 0o026 if _is_shared_with_us(status) else 0o066
    if not stat.S_ISREG(status.st_mode) or not mode & exposed or _is_mounted(path, status.st_dev):
        return None
    advice = chmod_for(PRIVATE, status)
    return f"others can read or change {path} (mode {mode:04o}); run: chmod {advice} {shlex.quote(str(path))}"


def _is_shared_with_us(status: os.stat_result) -> bool:
    """Whether the file's group is the way by which its owner lets this process read it. POSIX."""
    if status.st_uid != os.geteuid():
        return True
    return status.st_uid == 0 and status.st_gid in {os.getegid(), *os.getgroups()}


def _is_mounted(path: Path, device: int) -> bool:
    """Whether the platform put the file there. Kubernetes' folders of a volume's files begin with ``..``."""
    return path.resolve().parent.name.startswith("..") or _is_in_memory(path, device)


def _is_in_memory(path: Path, device: int) -> bool:
    """Whether a file is on a mounted tmpfs or ramfs that isn't one of the shared folders."""
    try:
        mounts = _MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    return is_memory_mount(mounts, number, path.resolve())


def is_memory_mount(mountinfo: str, device: str, path: Path) -> bool:
    """Whether the mount that holds ``path`` (resolved), on device ``major:minor``, is memory.

    ``mountinfo`` is the text of /proc/self/mountinfo, proc(5). One file system may be mounted at several
    points: the innermost point above the path counts.
    """
    found = ("", "")
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        _, _, number, _, point, *_ = fields.split(" ")
        point = _unescape(point)
        if number == device and path.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, rest.split(" ", 1)[0])
    point, kind = found
    return kind in _MEMORY_FILE_SYSTEMS and point not in _SHARED_FOLDERS


def _unescape(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
