"""The users that may change or read a file on Windows: its owner and access list, as SDDL, in every language.

Must not know which files matter. Sources: Microsoft's "Security Descriptor String Format", "ACE Strings" and
"SID Strings"; winnt.h.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

_TRUSTED = frozenset(
    (
        "SY",  # the system
        "BA",  # administrators
        "LA",  # the built-in administrator
        "DA",  # the domain's administrators
        "EA",  # the enterprise's administrators
        "CO",  # the creator owner, who is the owner once the entry applies
        "OW",  # the owner, who is looked at for itself
        "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464",  # TrustedInstaller
    )
)
"""The SIDs that stand for root, and for owners."""
_ALIASES = {"S-1-5-18": "SY", "S-1-5-19": "LS", "S-1-5-20": "NS"}
"""The SIDs of the accounts that services run as, and their abbreviations."""
_RIGHTS = {
    "GA": 0x10000000,
    "GW": 0x40000000,
    "GR": 0x80000000,
    "SD": 0x00010000,
    "WD": 0x00040000,
    "WO": 0x00080000,
    "FA": 0x001F01FF,
    "FW": 0x00120116,
    "FR": 0x00120089,
    "KR": 0x00020019,
    "KW": 0x00020006,
    "CC": 0x00000001,
    "KA": 0x000F003F,
    "DC": 0x00000002,
    "LC": 0x00000004,
    "DT": 0x00000040,
}
"""The abbreviations of rights by which something can be changed or read (KA to DT by their numbers)."""
_TO_FILE = 0x500D0006
"""The rights to change a file: generic, to delete it, its access list, its owner, its data."""
_TO_FOLDER = 0x100D0040
"""The rights to replace what is in a folder; adding to the folder is no such right."""
_TO_READ = 0x90000001
"""The rights to read a file's data: generic, and its own."""
_NO_OTHER_USER = frozenset(("LS", "NS", "AC"))
"""The accounts of services, which an administrator lets read, and all app packages."""
_PACKAGES = "S-1-15-"
"""How the SIDs of app packages and their capabilities begin: of a user's programs, which run as that user."""
_ANOTHER_S = "it belongs to another user"
_ENTRY = re.compile(r"\(([^()]*)")  # an entry with a condition has parentheses within it
_PARTS = re.compile(
    r"(?:O:(?P<owner>[-0-9A-Z]+?))?(?:G:[-0-9A-Z]+?)?(?:D:(?P<list>[A-Z_]*?(?:\(.*\))?))?(?:S:.*)?\Z"
)


def fault_in(sddl: str, ours: frozenset[str], *, is_folder: bool) -> str | None:
    """The fault that a security descriptor shows, None for a good one. ``ours`` are our SIDs."""
    parts = _PARTS.match(sddl)
    if parts is None:
        return "its access list can't be understood"
    trusted = _TRUSTED | ours
    if parts["owner"] is not None and parts["owner"] not in trusted:
        return f"{_ANOTHER_S} ({parts['owner']})"
    for sid in _having(parts["list"] or "", _TO_FOLDER if is_folder else _TO_FILE):
        if sid not in trusted:
            return f"others ({sid}) can change it"
    return None


def exposure_in(sddl: str, ours: frozenset[str]) -> str | None:
    """The users, beside ``ours``, that a security descriptor lets read a file; None: nobody."""
    parts = _PARTS.match(sddl)
    for sid in _having((parts and parts["list"]) or "", _TO_READ):
        if sid not in _TRUSTED | _NO_OTHER_USER | ours and not sid.startswith(_PACKAGES):
            return f"others ({sid}) can read it"
    return None


def with_advice(place: Path, fault: str, sid: str) -> str:
    """The fault of a file, and how the user ``sid`` mends it, in cmd.exe and in PowerShell."""
    if fault.startswith(_ANOTHER_S):
        return f"{place}: {fault}; put a copy in its place, which is yours"
    private = f'icacls "{place}" /inheritance:r /grant:r "*{sid}:F"'
    return f'{place}: {fault}; run: icacls "{place}" /reset, then: {private}'


def _having(entries: str, rights: int) -> Iterator[str]:
    """The SIDs that entries of the list give one of these rights."""
    for entry in _ENTRY.findall(entries):
        kind, flags, given, _, _, sid = [*entry.split(";"), *[""] * 5][:6]
        if "IO" not in _pairs(flags) and kind in ("A", "XA", "OA") and _mask(given) & rights:
            yield sid


def _mask(given: str) -> int:
    if given.startswith("0x"):
        return int(given, 16)
    mask = 0
    for word in _pairs(given):
        mask |= _RIGHTS.get(word, 0)
    return mask


def _pairs(text: str) -> list[str]:
    return [text[place : place + 2] for place in range(0, len(text), 2)]


if sys.platform == "win32":
    import ctypes
    import functools
    from ctypes import wintypes

    _SE_FILE_OBJECT, _OWNER_AND_LIST, _REVISION, _TOKEN_QUERY, _TOKEN_USER = 1, 0x1 | 0x4, 1, 0x8, 1
    _advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel32.GetCurrentProcess.restype = wintypes.HANDLE
    _kernel32.LocalFree.argtypes = (ctypes.c_void_p,)
    _kernel32.CloseHandle.argtypes = (wintypes.HANDLE,)
    _IS_WINE = hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")

    def sddl(path: Path) -> str | None:
        """The owner and the access list of a file or folder, None where there is none to read.

        Wine makes lists up from the modes of files, and can't say "sticky": its lists count as none.
        """
        return None if _IS_WINE else _sddl(path)

    def _sddl(path: Path) -> str | None:
        descriptor = ctypes.c_void_p()
        nothing = ctypes.c_void_p()
        failed = _advapi32.GetNamedSecurityInfoW(
            ctypes.c_wchar_p(str(path)),
            _SE_FILE_OBJECT,
            _OWNER_AND_LIST,
            nothing,
            nothing,
            nothing,
            nothing,
            ctypes.byref(descriptor),
        )
        if failed:
            return None
        try:
            text = wintypes.LPWSTR()
            made = _advapi32.ConvertSecurityDescriptorToStringSecurityDescriptorW(
                descriptor, _REVISION, _OWNER_AND_LIST, ctypes.byref(text), nothing
            )
            found = _taken(text) if made else None
        finally:
            _kernel32.LocalFree(descriptor)
        return None if found is None or "NO_ACCESS_CONTROL" in found else found

    @functools.cache
    def own_sid() -> str:
        """This user's SID, as SDDL writes it. Raises OSError."""
        token = wintypes.HANDLE()
        if not _advapi32.OpenProcessToken(
            wintypes.HANDLE(_kernel32.GetCurrentProcess()), _TOKEN_QUERY, ctypes.byref(token)
        ):
            raise ctypes.WinError(ctypes.get_last_error())
        try:
            size = wintypes.DWORD(256)
            room = ctypes.create_string_buffer(size.value)
            text = wintypes.LPWSTR()
            if not (
                _advapi32.GetTokenInformation(token, _TOKEN_USER, room, size, ctypes.byref(size))
                and _advapi32.ConvertSidToStringSidW(ctypes.c_void_p.from_buffer(room), ctypes.byref(text))
            ):
                raise ctypes.WinError(ctypes.get_last_error())
            return _taken(text)
        finally:
            _kernel32.CloseHandle(token)

    def _taken(text: wintypes.LPWSTR) -> str:
        """The text, whose memory is freed."""
        try:
            return text.value or ""
        finally:
            _kernel32.LocalFree(text)

    def fault_of(path: Path) -> str | None:
        """Why the file isn't to be trusted; None for a good one, and for one without an access list."""
        ours = _ours()
        for place in dict.fromkeys((path, path.resolve(), *path.parents, *path.resolve().parents)):
            is_folder = place.is_dir()
            said = sddl(place)
            fault = None if said is None else fault_in(said, ours, is_folder=is_folder)
            if fault is not None and is_folder:
                return f"{place}: {fault}; use a file in your own user folder"
            if fault is not None:
                return with_advice(place, fault, own_sid())
        return None

    def exposure_of(path: Path) -> str | None:
        """Why a file with a secret is not private; None for a private one, or without an access list."""
        said = sddl(path)
        fault = None if said is None else exposure_in(said, _ours())
        return None if fault is None else with_advice(path, fault, own_sid())

    def _ours() -> frozenset[str]:
        sid = own_sid()
        return frozenset((sid, _ALIASES.get(sid, sid)))

    def is_known(path: Path) -> bool:
        """Whether the file has an access list that can be read."""
        return sddl(path) is not None
