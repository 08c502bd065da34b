"""What a log line looks like, what it never holds, and what a failing stream may do."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import enum
import errno
import gc
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import timeit
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import pytest
import structlog
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support.texts import texts

from proxy.logs import setup as log
from proxy.logs.redact import Redactor

SECRET = "hush-hush/secret+with=signs"


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.removeHandler(log._handler)
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def registered() -> Iterator[str]:
    log.redactor.add(SECRET)
    yield SECRET
    log.redactor.discard(SECRET)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def logged(write: Callable[[Any], object], level: str = "info", rendering: str = "json") -> str:
    stream = Terminal() if rendering == "terminal" else io.StringIO()
    log.configure(level, "text" if rendering == "terminal" else rendering, stream)
    write(log.get_logger("proxy.test"))
    return stream.getvalue()


# ---- rendering


@pytest.mark.parametrize("rendering", ["json", "text"])
def test_the_journal_gets_the_level_of_each_line(
    rendering: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = ("debug", "info", "warning", "error", "critical")
    with (tmp_path / "journal").open("w+") as journal, (tmp_path / "other").open("w+") as other:
        status = os.fstat(journal.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        for stream in (journal, other):
            log.configure("debug", rendering, stream)
            for level in levels:
                log.log_soon("proxy", level, "listening", {})
            log.get_logger("proxy").error("failed")
            logging.getLogger("library").warning("words")
            log._sink.flush()
            stream.seek(0)
        starts = [line[:3] for line in journal]
        assert starts == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>", "<4>"]
        assert not any(line.startswith("<") for line in other)
        log.configure("info", rendering, io.StringIO())


def test_a_json_line_holds_time_level_logger_event_and_the_values() -> None:
    (line,) = logged(
        lambda logger: logger.info("token_fetched", project="shop", expires_in=3600)
    ).splitlines()
    event = json.loads(line)
    stamp = dt.datetime.fromisoformat(event.pop("timestamp"))
    assert stamp.utcoffset() == dt.timedelta(0)
    assert abs(dt.datetime.now(dt.UTC) - stamp) < dt.timedelta(minutes=1)
    assert event == {
        "level": "info",
        "logger": "proxy.test",
        "event": "token_fetched",
        "project": "shop",
        "expires_in": 3600,
    }
    assert line.startswith('{"timestamp":')


def test_text_is_for_people() -> None:
    (line,) = logged(
        lambda logger: logger.warning("token_refused", project="shop"), rendering="text"
    ).splitlines()
    assert "[warning" in line
    assert "token_refused" in line
    assert "project=shop" in line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("given", "environ", "looks"),
    [
        ("auto on a terminal", {}, "text in colours"),
        ("auto elsewhere", {}, "json"),
        ("text elsewhere", {}, "text"),
        ("json on a terminal", {}, "json"),
        ("auto on a terminal", {"NO_COLOR": "1"}, "text"),
        ("auto on a terminal", {"NO_COLOR": ""}, "text in colours"),
        ("auto on a terminal", {"TERM": "dumb"}, "text"),
    ],
)
def test_auto_is_text_on_a_terminal_and_json_elsewhere(
    given: str, environ: dict[str, str], looks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if "terminal" in given else io.StringIO()
    log.configure("info", given.partition(" ")[0], stream)
    log.get_logger("proxy.test").warning("started")
    line = stream.getvalue()
    assert line.startswith("{") is (looks == "json")
    assert ("\x1b[" in line) is (looks == "text in colours" and sys.platform != "win32")


def test_levels_below_the_configured_one_are_silent() -> None:
    def write(logger: Any) -> None:
        for level in ("debug", "info", "warning", "error"):
            getattr(logger, level)("happened")
            logging.getLogger("aiohttp.server").log(logging.getLevelName(level.upper()), "happened")

    for level, count in (("debug", 8), ("info", 6), ("warning", 4), ("error", 2)):
        assert len(logged(write, level).splitlines()) == count


def test_a_logger_follows_a_later_configure() -> None:
    logger = log.get_logger("proxy.test")
    first, second = io.StringIO(), io.StringIO()
    log.configure("warning", "json", first)
    logger.info("before")
    log.configure("debug", "text", second)
    logger.debug("after")
    logging.getLogger("asyncio").error("once")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 2
    assert not second.getvalue().startswith("{")


def test_standard_error_is_the_default_stream(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "auto")
    log.get_logger("proxy.test").info("started", name="é")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["name"] == "é"


class Colour(enum.Enum):
    RED = "red"


def test_values_that_json_does_not_have_never_raise() -> None:
    circle: list[Any] = []
    circle.append(circle)
    values = {
        "path": Path("a"),
        "api": Colour.RED,
        "day": dt.date(2027, 1, 31),
        "raw": b"\xff",
        "bad": "\udcff",
    }
    first, second, third = (
        json.loads(line)
        for line in logged(
            lambda logger: [
                logger.info("happened", **values),
                logger.info("happened", circle=circle),
                logger.info("happened", keys={(1, 2): 3}),
            ]
        ).splitlines()
    )
    assert (first["path"], first["api"], first["day"]) == ("a", "red", "2027-01-31")
    assert second["circle"] == "[[...]]"
    assert third["keys"] == "{(1, 2): 3}"


def test_text_values_can_not_forge_lines_or_move_the_cursor() -> None:
    hostile = "a\n2027-01-01 [info] forged\x1b[2J\r\x9b"
    text = logged(lambda logger: logger.info(hostile, target=hostile, nested=[hostile]), rendering="text")
    assert len(text.splitlines()) == 1
    assert text.removesuffix("\n").isprintable()


@pytest.mark.parametrize("rendering", ["json", "text", "terminal"])
def test_tracebacks_show_no_local_variables(rendering: str) -> None:
    def fail(logger: Any) -> None:
        local = f"value-of-a-{'local'}"
        try:
            int(local * 0)
        except ValueError:
            logger.exception("request_failed")
            logging.getLogger("aiohttp").exception("failed too")

    text = logged(fail, rendering=rendering)
    assert text.count("ValueError: invalid literal") == 2
    assert text.count("Traceback") == 2
    assert "value-of-a-local" not in text


# ---- the standard library


def test_the_standard_library_s_records_look_like_ours() -> None:
    (line,) = logged(lambda _: logging.getLogger("aiohttp.server").warning("%s is %d", "x", 3)).splitlines()
    event = json.loads(line)
    assert event.pop("timestamp")
    assert event == {
        "level": "warning",
        "logger": "aiohttp.server",
        "event": "library_logged",
        "message": "x is 3",
    }


def test_a_record_with_wrong_arguments_is_still_one_line(
    registered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own raise
    message = f"{registered} %d"
    text = logged(lambda _: logging.getLogger("aiohttp").error(message, "x"))
    event = json.loads(text)
    assert (event["event"], event["logger"], event["level"]) == ("library_logged", "aiohttp", "error")
    assert event["message"] == "'[redacted] %d'"


def test_exceptions_that_nobody_can_catch_are_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    class Fails:
        def __del__(self) -> None:
            raise ZeroDivisionError("of a destructor")

    def fail() -> None:
        raise ZeroDivisionError("of a thread")

    def write(_: object) -> None:
        log.log_ignored_exceptions()
        Fails()
        gc.collect()
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    of_destructor, of_thread = (json.loads(line) for line in logged(write).splitlines())
    assert {of_destructor["event"], of_thread["event"]} == {"exception_ignored"}
    assert "ZeroDivisionError: of a destructor" in of_destructor["exception"]
    assert "ZeroDivisionError: of a thread" in of_thread["exception"]
    assert "Fails.__del__" in of_destructor["where"]


def test_warnings_become_log_lines() -> None:
    def warn(_: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            logging.captureWarnings(True)
            warnings.warn("too old", DeprecationWarning, stacklevel=1)

    event = json.loads(logged(warn))
    assert (event["logger"], event["level"]) == ("py.warnings", "warning")
    assert "too old" in event["message"]


async def test_a_lost_task_s_exception_is_a_log_line(registered: str) -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)

    async def fail() -> None:
        raise RuntimeError(registered)

    task = asyncio.ensure_future(fail())
    await asyncio.wait([task])
    del task
    gc.collect()
    (event,) = lines(stream)
    assert event["logger"] == "asyncio"
    assert "RuntimeError: [redacted]" in event["exception"]


# ---- redaction


@pytest.mark.parametrize("rendering", ["json", "text", "terminal"])
@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f"Bearer {SECRET}",
        {"nested": [{"deep": (SECRET,)}]},
        {SECRET: 1},
        SECRET.encode(),
        RuntimeError(SECRET),
        f"/v1/x?csq_key={quote(SECRET, safe='')}&a=1",
        urlencode({"key": SECRET}),
        quote_plus(SECRET),
        json.dumps({"client_secret": SECRET}),
        f"Basic {base64.b64encode(SECRET.encode()).decode()}",
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
    ],
)
def test_a_registered_secret_is_redacted_wherever_it_stands(
    value: object, rendering: str, registered: str
) -> None:
    text = logged(lambda logger: logger.info("happened", value=value), rendering=rendering)
    assert "[redacted]" in text
    assert "hush" not in text
    assert base64.b64encode(SECRET.encode()).decode()[:12] not in text


@pytest.mark.parametrize("user", ["", "u", "us", "use", "user", "é"])
def test_basic_credentials_are_redacted_at_every_alignment(user: str, registered: str) -> None:
    coded = base64.b64encode(f"{user}:{registered}:tail".encode()).decode()
    text = logged(lambda logger: logger.info("happened", field=f"Basic {coded}"))
    left = json.loads(text)["field"].replace("[redacted]", "")
    assert len(left) <= len(f"Basic {coded}") - len(registered) * 4 // 3 + 1


@pytest.mark.parametrize("rendering", ["json", "text", "terminal"])
def test_events_exceptions_and_foreign_records_are_redacted(rendering: str, registered: str) -> None:
    message = f"got {registered}"
    empty: dict[str, int] = {}

    def write(logger: Any) -> None:
        logger.info(message)
        logging.getLogger(registered).info("%s", {"a": registered})
        try:
            empty[registered]
        except KeyError as error:
            error.add_note(registered)
            logger.exception("failed")

    text = logged(write, rendering=rendering)
    assert text.count("[redacted]") >= 5
    assert "hush" not in text


def test_without_registration_the_canary_is_seen() -> None:
    assert SECRET in logged(lambda logger: logger.info("happened", value=SECRET))


around = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
secrets = texts(min_size=6, max_size=40).filter(lambda text: text not in "[redacted]")


@given(secret=secrets, before=around, after=around, rendering=st.sampled_from(["json", "text", "terminal"]))
@example(secret="'\"\\\n\x1bé", before="'", after='"', rendering="text")
@example(secret="a'b\"c\\d", before="", after="\n", rendering="text")
def test_no_secret_survives_in_any_value(secret: str, before: str, after: str, rendering: str) -> None:
    assume(secret not in "happened value nested level info logger proxy.test timestamp event None")
    assume(secret[:1] not in before + after and secret[-1:] not in before + after)
    log.redactor.add(secret)
    try:
        value = before + secret + after
        text = logged(
            lambda logger: logger.info("happened", value=value, nested=[{"a": value}]), rendering=rendering
        )
    finally:
        log.redactor.discard(secret)
    if rendering == "json":
        event = json.loads(text)
        assert secret not in event["value"]
        assert secret not in event["nested"][0]["a"]
    assert secret not in text.removesuffix("\n")
    assert "[redacted]" in text


@pytest.mark.parametrize(
    "values",
    [
        {"v": ["SECRET", "\ud800"]},
        {"v": {1: "SECRET"}},
        {"v": {"k": "SECRET"}, "n": 2**70},
        {"v": ["SECRET"], "error": "\ud800"},
    ],
)
def test_a_secret_in_a_list_is_redacted_beside_values_that_orjson_refuses(values: dict[str, Any]) -> None:
    secret = "secretsec\"x\\y'z\u00e9"
    text = json.loads(json.dumps(values).replace("SECRET", json.dumps(secret)[1:-1]))
    if 1 in values["v"]:
        text = {"v": {1: secret}}
    log.redactor.add(secret)
    try:
        line = logged(lambda logger: logger.info("happened", **text))
    finally:
        log.redactor.discard(secret)
    assert "secretsec" not in line
    assert not isinstance(json.loads(line)["v"], str)


def test_short_values_are_not_redacted() -> None:
    redactor = Redactor()
    redactor.add("short")
    redactor.add("longer")
    assert redactor.redact("short or longer") == "short or [redacted]"


def test_a_secret_added_twice_is_discarded_twice() -> None:
    redactor = Redactor()
    redactor.add("secret")
    redactor.add("secret")
    redactor.discard("secret")
    assert redactor.redact("secret") == "[redacted]"
    redactor.discard("secret")
    redactor.discard("secret")
    redactor.add("secret-more")
    assert redactor.redact("secret and secret-more") == "secret and [redacted]"
    redactor.add("secret")
    assert redactor.redact("secret-more") == "[redacted]"


def test_a_redactor_s_repr_shows_no_secret() -> None:
    redactor = Redactor()
    redactor.add("secret")
    assert repr(redactor) == "<Redactor secrets=1>"


def test_secrets_may_be_added_while_others_log() -> None:
    redactor = Redactor()
    redactor.add("the-secret")

    def churn() -> None:
        for number in range(30):
            redactor.add(f"other-secret-{number}")

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert redactor.redact("the-secret") == "[redacted]"
    assert redactor.redact("other-secret-29") == "[redacted]"


# ---- failing streams


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def write(self, text: str) -> int:
        if self.error:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "closed"),
        OSError(errno.ENOSPC, "full"),
        ValueError("I/O operation on closed file"),
        UnicodeEncodeError("ascii", "é", 0, 1, "no"),
    ],
)
def test_a_stream_that_fails_costs_lines_and_nothing_else(error: Exception) -> None:
    stream = Broken(error)
    log.configure("info", "json", stream)
    before = log.dropped_lines()
    logger = log.get_logger("proxy.test")
    logger.info("lost")
    logging.getLogger("aiohttp").error("lost")
    assert log.dropped_lines() == before + 2
    stream.error = None
    logger.info("kept")
    assert [event["event"] for event in lines(stream)] == ["kept", "log_lines_dropped"]
    assert lines(stream)[1]["count"] == 2
    logger.info("kept, too")
    assert len(lines(stream)) == 3
    assert log.dropped_lines() == before + 2


def test_no_stream_at_all_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    before = log.dropped_lines()
    log.configure("info", "auto")
    log.get_logger("proxy.test").info("lost")
    assert log.dropped_lines() == before + 1


def test_a_closed_stream_is_no_error(tmp_path: Path) -> None:
    stream = (tmp_path / "log").open("w", encoding="utf-8")
    stream.close()
    before = log.dropped_lines()
    log.configure("info", "auto", stream)
    log.get_logger("proxy.test").info("lost")
    assert log.dropped_lines() == before + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_no_error() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        before = log.dropped_lines()
        log.configure("info", "auto", stream)
        for _ in range(3):
            log.get_logger("proxy.test").info("lost")
        assert log.dropped_lines() == before + 3


def test_a_pipe_whose_reader_left_is_no_error_also_at_exit() -> None:
    code = """
import sys
from proxy.logs import setup as log
from proxy.logs.redact import Redactor
log.configure("info", "auto")
logger = log.get_logger("proxy.test")
sys.stdin.read()
for _ in range(3):
    logger.info("lost")
print(log.dropped_lines())
"""
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writer,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        os.close(writer)
        os.close(reader)
        out, _ = process.communicate(b"", timeout=60)
    assert out.strip() == b"3"
    assert process.returncode == 0


class Trickle(io.RawIOBase):
    """A raw stream that takes three bytes at a time, or none."""

    def __init__(self) -> None:
        self.taken = b""
        self.would_block = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        if self.would_block:
            return None
        self.taken += bytes(data[:3])
        return len(data[:3])


def test_a_line_is_written_whole_or_waits_until_it_can_be() -> None:
    raw = Trickle()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="ascii")
    log.configure("info", "json", stream)
    before = log.dropped_lines()
    logger = log.get_logger("proxy.test")
    logger.info("happened", name="é\udc80")
    event = json.loads(raw.taken)
    assert event["name"] == "é\udc80"
    raw.would_block = True
    logger.info("late")
    raw.would_block = False
    logger.info("last")
    assert [json.loads(line)["event"] for line in raw.taken.splitlines()] == ["happened", "late", "last"]
    assert log.dropped_lines() == before


# ---- lines that come very often


def at_once(write: Callable[[], object], rendering: str) -> list[str]:
    stream = Terminal() if rendering == "colours" else io.StringIO()
    log.configure("info", "auto" if rendering == "colours" else rendering, stream)
    write()
    return stream.getvalue().splitlines()


values = st.one_of(
    texts(max_size=20),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.lists(texts(max_size=5)),
)


@given(
    kept=st.dictionaries(st.sampled_from(["project", "route", "status", "total_ms", "replayed"]), values),
    rendering=st.sampled_from(["json", "text", "colours"]),
    level=st.sampled_from(["info", "warning"]),
)
def test_a_line_that_is_logged_soon_looks_like_any_other(
    kept: dict[str, Any], rendering: str, level: str
) -> None:
    def both() -> None:
        log.log_soon("proxy.test", level, "happened", kept)
        getattr(log.get_logger("proxy.test"), level)("happened", **kept)

    lines = [
        re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z|\d\d:\d\d:\d\d", "NOW", line, count=1)
        for line in at_once(both, rendering)
    ]
    half = len(lines) // 2  # a sentence has a line of its own on a terminal
    assert lines[:half] == lines[half:]
    assert "NOW" in lines[0]
    assert half == 1 or rendering == "colours"


def test_a_line_that_is_logged_soon_follows_a_later_configure() -> None:
    for level, rendering in (("info", "json"), ("warning", "text")):
        stream = io.StringIO()
        log.configure(level, rendering, stream)
        assert log.is_enabled_for(logging.INFO) is (level == "info")
        log.log_soon("proxy.test", "warning", "happened", {"status": 200})
        assert stream.getvalue().startswith("{") is (rendering == "json")


async def test_lines_that_are_logged_soon_are_written_together_and_in_their_order() -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    logger = log.get_logger("proxy.test")
    log.log_soon("proxy.test", "info", "first", {"status": 200})
    log.log_soon("proxy.test", "info", "second", {"status": 200})
    assert stream.getvalue() == ""
    await asyncio.sleep(0)
    assert [line["event"] for line in lines(stream)] == ["first", "second"]
    log.log_soon("proxy.test", "info", "third", {"status": 200})
    logger.info("fourth")
    logging.getLogger("aiohttp").error("fifth")
    texts = [line.get("message", line["event"]) for line in lines(stream)]
    assert texts == ["first", "second", "third", "fourth", "fifth"]


@pytest.mark.parametrize("rendering", ["json", "text", "terminal"])
async def test_a_secret_is_redacted_though_it_is_forgotten_before_its_line_is_written(rendering: str) -> None:
    stream = Terminal() if rendering == "terminal" else io.StringIO()
    log.configure("info", "auto" if rendering == "terminal" else rendering, stream)
    log.redactor.add(SECRET)
    log.log_soon("proxy.test", "info", "happened", {"caller": SECRET})
    log.redactor.discard(SECRET)
    await asyncio.sleep(0)
    assert "[redacted]" in stream.getvalue()
    assert "hush" not in stream.getvalue()


# ---- cost


def test_a_line_costs_little_and_a_silent_one_less() -> None:
    log.configure("info", "json", io.StringIO())
    logger = log.get_logger("proxy.test")
    tokens = [os.urandom(300).hex() for _ in range(20)]
    for token in tokens:
        log.redactor.add(token)
    try:
        loud = (
            min(timeit.repeat(lambda: logger.info("request_answered", status=200), number=200, repeat=5))
            / 200
        )
        silent = (
            min(timeit.repeat(lambda: logger.debug("request_answered", status=200), number=200, repeat=5))
            / 200
        )
    finally:
        for token in tokens:
            log.redactor.discard(token)
    assert silent < loud < 500e-6
