"""The start of a program of one file: PyInstaller puts this script, Python and packages into that file."""

from __future__ import annotations

import os
import sys

from proxy.__main__ import main

CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora from 43 on
    "/etc/ssl/ca-bundle.pem",  # openSUSE
)


def give_back_the_libraries() -> None:
    """Commands that the proxy runs load the system's libraries, not those that came in this file."""
    if sys.platform == "win32":
        import ctypes  # noqa: PLC0415 - only where it is used

        ctypes.windll.kernel32.SetDllDirectoryW(None)
    elif (before := os.environ.pop("LD_LIBRARY_PATH_ORIG", None)) is not None:
        os.environ["LD_LIBRARY_PATH"] = before
    else:
        os.environ.pop("LD_LIBRARY_PATH", None)


def find_certificates() -> None:
    """OpenSSL, which came in this file, looks for certificates where the system has them that built it."""
    import ssl  # noqa: PLC0415 - after the above, as all that loads libraries

    usual = ssl.get_default_verify_paths()  # None for what doesn't exist
    if sys.platform == "linux" and usual.cafile is None and usual.capath is None:
        found = next(filter(os.path.exists, CERTIFICATES), None)
        if found:
            os.environ["SSL_CERT_FILE"] = found


if __name__ == "__main__":
    give_back_the_libraries()
    find_certificates()
    main()
