"""Access lists of Windows, as SDDL: who may change a file, and who may replace what is in a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.configurations import SHOP, Writer

from proxy.app.app import App
from proxy.cli import check as report
from proxy.config import acl, trust
from proxy.config.load import load

ME = "S-1-5-21-1004336348-1177238915-682003330-1001"
OTHER = "S-1-5-21-1004336348-1177238915-682003330-1002"
PRIVATE = f"O:{ME}D:PAI(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;{ME})"


@pytest.mark.parametrize(
    ("sddl", "said"),
    [
        (PRIVATE, None),
        ("O:BAD:(A;ID;FA;;;SY)(A;ID;FA;;;BA)(A;ID;0x1200a9;;;BU)", None),  # others may read
        (f"O:{ME}D:AI(A;ID;0x1301bf;;;AU)", "others (AU) can change it"),  # a folder below C:\
        (f"O:{ME}D:(A;;FA;;;WD)", "others (WD) can change it"),
        (f"O:{ME}D:(A;;FW;;;{OTHER})", f"others ({OTHER}) can change it"),
        (f"O:{ME}D:(A;;GW;;;BU)", "others (BU) can change it"),
        (f"O:{ME}D:(A;;SDWDWO;;;BU)", "others (BU) can change it"),
        (f"O:{ME}D:(A;;0x2;;;BU)", "others (BU) can change it"),
        (f"O:{ME}D:(A;;KW;;;BU)", "others (BU) can change it"),
        (f"O:{ME}D:(A;OICIIO;FA;;;BU)", None),  # for what is inside only
        (f"O:{ME}D:(D;;FA;;;BU)(A;;FR;;;WD)", None),
        (
            f'O:{ME}D:(XA;;FA;;;BU;(@User.Title=="PM" && (Member_of {{SID(WD)}})))',
            "others (BU) can change it",
        ),
        (f"O:{OTHER}D:(A;;FA;;;{ME})", f"it belongs to another user ({OTHER})"),
        ("O:S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464D:(A;;FRFX;;;BU)", None),
        ("nonsense", "its access list can't be understood"),
    ],
)
def test_the_fault_of_a_file_is_in_its_owner_and_its_list(sddl: str, said: str | None) -> None:
    assert acl.fault_in(sddl, frozenset((ME,)), is_folder=False) == said


@pytest.mark.parametrize(
    ("sddl", "is_good"),
    [
        ("O:SYD:PAI(A;;LC;;;AU)(A;OICIIO;SDGXGWGR;;;AU)(A;;FA;;;SY)(A;OICI;0x1200a9;;;BU)", True),
        ("O:SYD:(A;CI;0x100026;;;BU)", True),  # new files may be added, as in a sticky folder
        (f"O:{ME}D:AI(A;OICIID;0x1301bf;;;AU)", False),  # DELETE: the folder can be renamed
        (f"O:{ME}D:(A;;DT;;;BU)", False),
        (f"O:{OTHER}D:(A;;FA;;;{ME})", False),
    ],
)
def test_a_folder_is_bad_where_others_can_replace_what_is_in_it(sddl: str, is_good: bool) -> None:
    assert (acl.fault_in(sddl, frozenset((ME,)), is_folder=True) is None) is is_good


@pytest.mark.parametrize(
    ("sddl", "said"),
    [
        (PRIVATE, None),
        (f"O:{ME}D:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;0x1301bf;;;LS)", None),  # a service's folder
        (f"O:{ME}D:(A;ID;0x1200a9;;;BU)(A;;FA;;;{ME})", "others (BU) can read it"),  # below ProgramData
        (f"O:{ME}D:(A;;FR;;;WD)", "others (WD) can read it"),
        (f"O:{ME}D:(A;;GR;;;{OTHER})", f"others ({OTHER}) can read it"),
        (f"O:{ME}D:(A;;CC;;;AU)", "others (AU) can read it"),
        (f"O:{ME}D:(A;OICIIO;FA;;;BU)(D;;FA;;;WD)", None),
        (f"O:{ME}D:(A;;FX;;;BU)", None),
        (f"O:{ME}D:(A;;0x1200a9;;;AC)(A;OICI;0x1200a9;;;S-1-15-3-65536-1888954469)", None),  # its own apps
    ],
)
def test_a_secret_is_exposed_where_others_can_read_its_file(sddl: str, said: str | None) -> None:
    assert acl.exposure_in(sddl, frozenset((ME,))) == said


@pytest.mark.parametrize("fault", ["others (BU) can change it", "others (WD) can read it"])
def test_the_commands_that_mend_a_file_are_the_same_in_each_shell(fault: str) -> None:
    """In PowerShell, %USERNAME% isn't replaced. Entries of the file's own outlive /inheritance:r."""
    assert acl.with_advice(Path("a b.toml"), fault, ME) == (
        f'a b.toml: {fault}; run: icacls "a b.toml" /reset, then:'
        f' icacls "a b.toml" /inheritance:r /grant:r "*{ME}:F"'
    )


def test_a_file_of_another_user_is_not_mended_by_its_access_list() -> None:
    fault = acl.fault_in(f"O:{OTHER}D:(A;;FA;;;{ME})", frozenset((ME,)), is_folder=False) or ""
    assert acl.with_advice(Path("a"), fault, ME) == f"a: {fault}; put a copy in its place, which is yours"


def test_everywhere_else_the_modes_tell(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has access lists")
    assert trust.unchecked((tmp_path,)) == []


@pytest.mark.skipif(sys.platform != "win32", reason="access lists of Windows")
def test_our_own_files_pass(write: Writer) -> None:
    path = write(SHOP)
    assert load(path, environ={}).source == path
    if sys.platform == "win32":  # mypy must not look at it elsewhere
        assert acl.own_sid().startswith("S-1-5-")


async def test_a_file_whose_list_can_t_be_read_is_told_by_check_and_in_the_log(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(SHOP)
    settings = load(path, {"server": {"port": 0}, "contentsquare": {"auth_url": "http://127.0.0.1:1"}}, {})
    told: list[tuple[str, object]] = []
    for module in ("proxy.app.app", "proxy.cli.live_check"):
        monkeypatch.setattr(f"{module}.unchecked", list)
    [finding] = report.findings(settings, live=False)
    assert (finding.check, finding.result) == ("files", "warning")
    assert str(path) in finding.message
    app = App(settings)
    monkeypatch.setattr(app, "_log_event", lambda event, values: told.append((event, values.get("files"))))
    async with app.started():
        assert ("files_unchecked", [str(path)]) in told
