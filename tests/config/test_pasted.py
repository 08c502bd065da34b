"""One rule for a pasted value, by every way that a value comes in; no fault shows a part of a secret."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configurations import CANARY, Writer, faults_of, posix_only
from typer.testing import CliRunner

from proxy.cli.health import find_key
from proxy.cli.main import cli
from proxy.config.load import load
from proxy.config.pasted import cleaned, description, value_of
from proxy.errors import ConfigError

MIDDLE = CANARY[:9]
WRONG = {
    f"{CANARY}\n{CANARY}": "holds more than one line; give one line only",
    f"{CANARY}\n\n": "holds more than one line",
    f" {CANARY}": "begins with a blank; remove it",
    f"{CANARY} ": "ends with a blank; remove it",
    f"{CANARY}\t\n": "ends with a blank",
    f"{MIDDLE}\t{CANARY}": r"holds \u0009 (a character that shows nothing) as character 10; copy or type",
    f"{CANARY}\u00a0": r"holds \u00a0 (no-break space) as character 19",
    f"\u200b{CANARY}": r"holds \u200b (zero width space) as character 1;",
    f"{MIDDLE}\u2060{CANARY}": r"holds \u2060 (word joiner)",
    f"{MIDDLE}\u00ad{CANARY}": r"holds \u00ad (soft hyphen)",
    f"{MIDDLE}\u202e{CANARY}": r"holds \u202e (right-to-left override)",
    f"{MIDDLE}\ufe0f{CANARY}": r"holds \ufe0f (variation selector-16)",
    f"{MIDDLE}\u3164{CANARY}": r"holds \u3164 (hangul filler)",
    f"{MIDDLE}\x1b{CANARY}": r"holds \u001b ",
    f"{MIDDLE}\x7f{CANARY}": r"holds \u007f ",
    f"{MIDDLE}\ufffd{CANARY}": r"holds \ufffd (replacement character)",
    f"{MIDDLE}\U000e0041{CANARY}": r"holds \U000e0041 (tag latin capital letter a)",
    f'"{CANARY}"': "has quotes around it, which would be a part of it; remove them",
    f"'{CANARY}'": "has quotes around it",
    f"\u201c{CANARY}\u201d": "has quotes around it",
    f"${{{CANARY}}}": "is a variable that no program has replaced, ${...};",
    f"$({CANARY})": "is a command that no shell has run, $(...);",
    f"{{{{ {CANARY} }}}}": "is a template that no program has filled in",
    f"<{CANARY}>": "is a placeholder, <...>;",
    f"op://{CANARY}": "is an address or a reference",
    f"client_secret={CANARY}": "begins with the name of its setting",
    f"CONTENTSQUARE_CLIENT_SECRET={CANARY}": "begins with the name of its setting",
    f"export CLIENT_SECRET={CANARY}": "begins with the name of its setting",
    f'{{"clientSecret": "{CANARY}"}}': "begins with the name of its setting",
    f"Bearer {CANARY}": "begins with the word of an Authorization field",
    "$CLIENT_SECRET": "is a variable that no program has replaced, $NAME",
    "%CLIENT_SECRET%": "is a variable that no program has replaced, %NAME%",
    "...": "is still the example's dots; put the real value there",
    "\u2026": "is still the example's dots",
    "********": "is masked",
    "YOUR-KEY": "is a placeholder",
    "changeme": "is a placeholder",
}
"""A value as somebody pastes it, and what is said of it."""
RIGHT = (
    CANARY,
    f"{CANARY}\n",
    f"{CANARY}\r\n",
    f"{MIDDLE} {CANARY}",
    "$ecret",
    "a=b==",
    "/+x'",
    '"',
    "p\u00e9",
)
INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")


def toml(value: str) -> str:
    """The value as a string of TOML."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def all_said(faults: list[str], names: list[str]) -> None:
    """Each fault belongs to its name, says what is wrong there, and shows no part of the secret."""
    assert len(faults) == len(WRONG), faults
    for words, name in zip(WRONG.values(), names, strict=True):
        [fault] = [fault for fault in faults if fault.startswith((f"{name}:", f"{name} ("))]
        assert words in fault
        assert MIDDLE not in fault
        assert "CLIENT_SECRET%" not in fault


def test_a_pasted_value_gets_the_same_verdict_in_a_file_of_settings(write: Writer) -> None:
    keys = ("client_id", "client_secret", "standby.client_secret")
    for key in keys:
        text, names = "", []
        for number, value in enumerate(WRONG):
            given = {"client_id": "id", "client_secret": "s", "standby.client_id": "i",
                     "standby.client_secret": "z"}  # fmt: skip
            given[key] = value
            text += f"[projects.p{number}]\n"
            text += "".join(f"{name} = {toml(value)}\n" for name, value in given.items())
            names.append(f"projects.p{number}.{key}")
        all_said(faults_of(write(text)), names)


def test_a_pasted_key_of_a_caller_gets_the_same_verdict(write: Writer) -> None:
    text = "[projects.a]\nclient_id = 'id'\nclient_secret = 's'\n"
    for number, value in enumerate(WRONG):
        text += f"[callers.c{number}]\nkey = {toml(value)}\n"
    all_said(faults_of(write(text)), [f"callers.c{number}.key" for number in range(len(WRONG))])


def test_a_pasted_value_gets_the_same_verdict_in_the_environment() -> None:
    environ = {}
    for number, value in enumerate(WRONG):
        environ[f"CSQ_PROXY_PROJECTS__P{number}__CLIENT_ID"] = "id"
        environ[f"CSQ_PROXY_PROJECTS__P{number}__CLIENT_SECRET"] = value
    names = [f"projects.p{number}.client_secret" for number in range(len(WRONG))]
    all_said(faults_of(environ=environ), names)
    sidecar = {"CONTENTSQUARE_CLIENT_ID": "id", "CONTENTSQUARE_CLIENT_SECRET": f'"{CANARY}"'}
    [fault] = faults_of(environ=sidecar)
    assert fault == (
        "projects.default.client_secret (CONTENTSQUARE_CLIENT_SECRET):"
        " has quotes around it, which would be a part of it; remove them"
    )


def all_said_of_files(write: Writer, key: str, way: str) -> None:
    """Each wrong value in a file, which the projects' ``key`` reaches in this ``way`` by its number."""
    text = ""
    for number, value in enumerate(WRONG):
        write("", f"s{number}").write_bytes(value.encode())
        text += f"[projects.p{number}]\nclient_id = 'id'\n{key} = {way.format(number)}\n"
    all_said(faults_of(write(text)), [f"projects.p{number}.{key}" for number in range(len(WRONG))])


def test_a_pasted_value_gets_the_same_verdict_in_a_file_of_its_own(write: Writer) -> None:
    all_said_of_files(write, "client_secret_file", "'s{}'")


@posix_only
def test_a_pasted_value_gets_the_same_verdict_from_a_command(write: Writer) -> None:
    all_said_of_files(write, "client_secret_command", "['cat', 's{}']")


def test_init_asks_again_after_a_value_that_cannot_be_meant(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    wrong = {value: words for value, words in WRONG.items() if "\n" not in value and meant(value) is None}
    given = "\n".join(("shop", "id", *wrong, CANARY, "", "", ""))
    result = CliRunner().invoke(cli, ["init", "--no-check", "--config", str(path)], input=given)
    assert result.exit_code == 0, result.output
    for words in wrong.values():
        assert f"The answer {words}" in result.output
    assert MIDDLE not in result.output
    project = load(path, environ={}).projects["shop"]
    assert project.client_secret.get_secret_value() == CANARY


CAME_ALONG = str.maketrans("", "", " \t\"'\u201c\u201d\u00a0\u200b\u2060\u00ad\u202e\ufe0f\u3164\U000e0041")


def meant(value: str) -> str | None:
    """The value without what comes along when it is copied; None where it is still wrong then."""
    found = value.strip("\n").translate(CAME_ALONG).removeprefix("Bearer")
    return found if found in (CANARY, MIDDLE + CANARY) and "\t" not in value[:-2] else None


@pytest.mark.parametrize("value", [value for value in WRONG if meant(value) and "\n" not in value])
def test_init_leaves_out_what_came_along_with_a_copy_and_says_so(value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    given = f"\ufeff shop\u200b\nid\n{value}\n\u200b 42\n\n"
    result = CliRunner().invoke(cli, ["init", "--no-check", "--config", str(path)], input=given)
    assert result.exit_code == 0, result.output
    project = load(path, environ={}).projects["shop"]
    assert (project.client_secret.get_secret_value(), project.project_id) == (meant(value), 42)
    blanks_only = value.strip() in (meant(value), "")
    assert result.output.count("(Left out:") == (2 if blanks_only else 3)
    assert MIDDLE not in result.output


def test_an_answer_is_cleaned_only_of_what_nobody_means() -> None:
    assert cleaned("\x1b[200~s3cret\x1b[201~") == "s3cret"
    assert cleaned("  `'s3cret'` ") == "s3cret"
    for marked in ("Bearer s3cret", " bearer\t 's3cret'", '"Bearer s3cret"'):
        assert cleaned(marked) == "s3cret"
    for kept in (
        "a b",
        "'",
        "it's",
        '"a',
        "p\u00e9",
        "a\tb",
        "\ufffd",
        "\x1bx",
        "Bearer",
        "Bearers x",
        "Basic eA==",
    ):
        assert cleaned(kept) == kept


def test_the_commands_key_gets_the_same_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, words in WRONG.items():
        (tmp_path / "key").write_bytes(value.encode())
        monkeypatch.setenv("CSQ_PROXY_KEY", value)
        for file, place in ((tmp_path / "key", "--key-file"), (None, "CSQ_PROXY_KEY")):
            with pytest.raises(ConfigError) as caught:
                find_key(file)
            assert caught.value.faults[0].startswith(f"{place}: the key {words}")
            assert MIDDLE not in caught.value.faults[0]


def test_a_key_file_that_cannot_be_read_is_told_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_key(tmp_path / "none")
    assert caught.value.faults == (f"--key-file: can't read {tmp_path / 'none'}: No such file or directory",)


@pytest.mark.parametrize("value", RIGHT)
def test_a_value_that_may_be_meant_is_kept_but_for_one_line_end(value: str, write: Writer) -> None:
    expected = value.removesuffix("\n").removesuffix("\r")
    environ = {"CONTENTSQUARE_CLIENT_ID": value, "CONTENTSQUARE_CLIENT_SECRET": value}
    write("", "s").write_bytes(value.encode())
    quoted = toml(value)
    file = write(f"[projects.a]\nclient_id = {quoted}\nclient_secret = {quoted}\n"
                 "[projects.b]\nclient_id = 'b'\nclient_secret_file = 's'\n")  # fmt: skip
    settings = load(file, environ=environ, search=False)
    for name, project in settings.projects.items():
        assert project.client_secret.get_secret_value() == expected
        assert project.client_id == ("b" if name == "b" else expected)


@given(st.text("abcXYZ019-_", min_size=1), st.characters(), st.text("abcXYZ019-_", min_size=1))
def test_a_character_that_shows_nothing_is_refused_wherever_it_stands(
    before: str, character: str, after: str
) -> None:
    kind = unicodedata.category(character)
    if kind in INVISIBLE or (kind == "Zs" and character != " "):
        with pytest.raises(ValueError, match=r"more than one line|as character ") as caught:
            value_of(before + character + after)
        if character not in "\r\n":
            assert f"{ord(character):04x} (" in str(caught.value)
            assert str(caught.value).isascii()
            assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("a" * 64, "64 characters, nothing unusual in it"),
        ("a", "1 character, nothing unusual in it"),
        ("ab cd", "5 characters, a blank within it"),
        ("caf\u00e9'", "5 characters, characters that are not ASCII, a quote at one end"),
    ],
)
def test_a_refused_secret_is_described_by_its_length_and_its_kinds_of_characters(
    value: str, told: str
) -> None:
    assert description(value) == told
