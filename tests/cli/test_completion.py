"""What a shell offers when Tab is pressed, asked as bash asks; and the scripts for the other shells."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import STARTUP_S, write
from support.terminal import in_terminal
from typer.testing import CliRunner

from proxy.cli import health, serve
from proxy.cli.main import cli
from proxy.cli.snippets.text import FOR_CALLERS, FOR_OPERATORS

NAMES = """
[projects.shop-fr]
client_secret_command = ["false"]
[projects.shop-de]
[accounts.acme]
projects = [42, 43]
[accounts.any]
"""
ODD = r"""
[projects."\u001b]0;title\u0007"]
[projects."$(id)"]
[accounts.acme]
projects = [42, "$(id)", "\u001b[2J", -1, true]
[accounts."a b"]
"""
"""Names and numbers that no configuration may have: a terminal or a shell would obey them."""
SHARE = Path(__file__).parents[2] / "share"
"""What the wheel installs."""
OURS = f". {shlex.quote(str(SHARE / 'bash-completion/completions/csq-proxy'))}"
FUNCTIONS = shlex.quote(str(SHARE / "zsh/site-functions"))
TYPERS = 'eval "$(_CSQ_PROXY_COMPLETE=source_bash csq-proxy)"'
"""What ``--install-completion`` installs."""
ASK = """
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
[[ $(complete -p csq-proxy) =~ -F\\ ([a-z_]+) ]]
"${BASH_REMATCH[1]}" csq-proxy
printf '%s\\n' "${COMPREPLY[@]}"
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the command is a script here")


@pytest.fixture
def shell(environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """An environment where ``csq-proxy`` is this program, and no configuration is found but here."""
    command = tmp_path / "bin" / "csq-proxy"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom proxy.__main__ import main\n\nmain()\n")
    command.chmod(0o755)
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
    return {**environ, "PATH": f"{command.parent}:{environ['PATH']}", "PYTHONPATH": path}


def ended_of(command: list[str], environ: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=STARTUP_S, env=environ, cwd=cwd, check=False
    )


def offered(*words: str, shell: dict[str, str], cwd: Path, script: str = OURS) -> list[str]:
    ended = ended_of(["bash", "-c", f"{script}\n{ASK}", "bash", "csq-proxy", *words], shell, cwd)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_is_offered_what_the_program_says(shell: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "config.toml", NAMES)
    commands = offered("s", shell=shell, cwd=tmp_path)
    assert set(commands) == {"serve", "status", "stop", "snippets", "sandbox"}
    for script in (OURS, TYPERS):
        assert offered("snippets", "shop-f", shell=shell, cwd=tmp_path, script=script) == ["shop-fr"]


def test_offered_are_commands_projects_and_tools(
    shell: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "config.toml", NAMES)
    write(tmp_path / "other.toml", "[projects.other]")
    write(tmp_path / "broken.toml", "[projects")
    write(tmp_path / "odd.toml", ODD)
    monkeypatch.chdir(tmp_path)

    def tab(*words: str) -> list[str]:
        unset = {name: None for name in os.environ if name not in shell}
        line = {"COMP_WORDS": "\n".join(("csq-proxy", *words)), "COMP_CWORD": str(len(words))}
        asked = {**unset, **shell, **line, "_CSQ_PROXY_COMPLETE": "complete_bash"}
        ended = CliRunner().invoke(cli, prog_name="csq-proxy", env=asked)
        assert (ended.exit_code, ended.stderr) == (0, "")
        return ended.stdout.split()

    options = ["--config", "--sandbox", "--host", "--port", "--log-level", "--log-format", "--help"]
    assert tab("serve", "--") == options
    assert tab("serve", "--log-level", "") == ["debug", "info", "warning", "error"]
    assert tab("serve", "--log-format", "j") == ["json"]
    assert tab("config", "") == ["show"]
    assert tab("snippets", "") == ["acme/42", "acme/43", "any/", "shop-de", "shop-fr"]
    assert tab("snippets", "--for", "") == [*FOR_CALLERS, *FOR_OPERATORS]
    assert tab("snippets", "shop-fr", "--for", "powers") == ["powershell"]
    assert tab("snippets", "--config", "other.toml", "") == ["other"]
    assert tab("snippets", "--config", "broken.toml", "") == []
    assert tab("snippets", "--config", "odd.toml", "") == ["acme/42"]
    shell["CSQ_PROXY_PROJECTS__SHOP_US__CLIENT_ID"] = "id"
    assert tab("snippets", "shop-u") == ["shop-us"]


@pytest.mark.parametrize("command", ["serve", "health"])
def test_an_option_has_the_words_of_the_command_s_own_help(command: str) -> None:
    parser = {"serve": serve, "health": health}[command].make_parser()
    told = {action.option_strings[-1]: action.help for action in parser._actions}
    line = {"_CSQ_PROXY_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    for option in sorted(told.keys() - {"--key-file"}):
        asked = {**line, "_TYPER_COMPLETE_ARGS": f"csq-proxy {command} {option}"}
        ended = CliRunner().invoke(cli, prog_name="csq-proxy", env=asked)
        assert f"{option}\t{(told[option] or '').partition(' [')[0]}" in ended.stdout


@pytest.mark.parametrize(
    ("name", "flags", "load"),
    [
        ("bash", "--norc --noprofile -i", OURS),
        ("zsh", "-f -i", f"fpath=({FUNCTIONS} $fpath); autoload -U compinit; compinit -D -u"),
    ],
    ids=["bash", "zsh"],
)
def test_a_shell_itself_completes_with_what_the_wheel_installs(
    name: str, flags: str, load: str, shell: dict[str, str], tmp_path: Path
) -> None:
    if (path := shutil.which(name)) is None:
        pytest.skip(f"no {name} here")
    write(tmp_path / "config.toml", NAMES)
    shell |= {"PS1": "ready> ", "TERM": "dumb"}
    with in_terminal("", path, *flags.split(), environ=shell, cwd=tmp_path) as terminal:
        terminal.wait_for("ready> ")
        terminal.type(f"{load}; echo lo''aded\n")
        terminal.wait_for("(?s)loaded.*ready> ")
        terminal.type("csq-proxy snippets shop-f\t")
        terminal.wait_for("csq-proxy snippets shop-fr ")
        terminal.type("--config conf\t")
        terminal.wait_for("--config config.toml")


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_itself_completes_with_what_the_wheel_installs(shell: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "config.toml", NAMES)
    ended = ended_of(
        ["fish", "-c", "complete -C 'csq-proxy snippets shop-f'"],
        {**shell, "XDG_DATA_DIRS": str(SHARE)},
        tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "shop-fr\n"


@pytest.mark.parametrize(
    ("name", "registers"),
    [
        ("bash", "complete -o default -F"),
        ("zsh", "#compdef csq-proxy"),
        ("fish", "complete --command csq-proxy"),
        ("powershell", "Register-ArgumentCompleter"),
    ],
)
def test_there_is_a_script_for_each_shell(name: str, registers: str) -> None:
    asked = {"_CSQ_PROXY_COMPLETE": f"source_{name}"}
    ended = CliRunner().invoke(cli, prog_name="csq-proxy", env=asked)
    assert ended.exit_code == 0, ended.stderr
    assert registers in ended.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_a_home_that_nothing_can_be_written_to_is_one_line_and_ends_it_with_1(
    shell: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "file"
    home.touch()
    # the shell is the caller, so it is known by that
    ended = ended_of(
        ["bash", "-c", "csq-proxy --install-completion; exit $?"], {**shell, "HOME": str(home)}, tmp_path
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"csq-proxy: --install-completion: can't write {home} (File exists)\n"
