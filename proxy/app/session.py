"""A window that is never shown, on Windows alone: the way in which Windows asks a program to end.

The user logs off, the computer shuts down, taskkill or the Task Scheduler ends the program: each sends a
message to the windows of the process. A process with a console gets the console's events instead (and under
Wine, none of these where it has a window, too). Source: Microsoft's "WM_ENDSESSION message".
"""

from __future__ import annotations

import sys
from collections.abc import Callable

WM_CLOSE = 0x10
WM_ENDSESSION = 0x16
_GWLP_WNDPROC = -4
_SERVICES = 0
"""The session of services. A service manager ends them."""

if sys.platform == "win32":
    import ctypes
    import threading
    import time
    from ctypes import wintypes

    def on_request_to_end(stop: Callable[[], object]) -> None:
        """Call ``stop``, in another thread, when Windows asks a process without a console to end."""
        kernel32, session = ctypes.windll.kernel32, wintypes.DWORD()
        kernel32.ProcessIdToSessionId(kernel32.GetCurrentProcessId(), ctypes.byref(session))
        has_console = kernel32.GetConsoleProcessList(ctypes.byref(wintypes.DWORD()), 1)
        if session.value != _SERVICES and not has_console:
            threading.Thread(target=_keep_window, args=(stop,), name="window", daemon=True).start()

    def _keep_window(stop: Callable[[], object]) -> None:
        """Make the window and answer its messages until the process ends; without a desktop, return."""
        user32 = ctypes.WinDLL("user32")  # with argument types of its own
        parameters = (wintypes.HWND, wintypes.UINT, wintypes.WPARAM, wintypes.LPARAM)
        user32.DefWindowProcW.argtypes, user32.DefWindowProcW.restype = parameters, wintypes.LPARAM
        procedure = ctypes.WINFUNCTYPE(wintypes.LPARAM, *parameters)

        def answer(window: int, message: int, value: int, more: int) -> int:
            if message == WM_CLOSE:
                stop()
                return 0
            if message == WM_ENDSESSION and value:
                stop()
                while True:  # Windows ends the process as soon as this returns
                    time.sleep(1)
            return int(user32.DefWindowProcW(window, message, value, more))

        user32.CreateWindowExW.restype = wintypes.HWND
        window = user32.CreateWindowExW(0, "STATIC", "csq-proxy", 0, 0, 0, 0, 0, None, None, None, None)
        if window is None:
            return
        kept = procedure(answer)  # Windows keeps no reference to it
        replace = getattr(user32, "SetWindowLongPtrW", user32.SetWindowLongW)  # 64 bits, 32 bits
        replace.argtypes = (wintypes.HWND, ctypes.c_int, procedure)
        replace(window, _GWLP_WNDPROC, kept)
        message = wintypes.MSG()
        while user32.GetMessageW(ctypes.byref(message), None, 0, 0) > 0:
            user32.DispatchMessageW(ctypes.byref(message))

else:

    def on_request_to_end(stop: Callable[[], object]) -> None:
        """Signals do that elsewhere."""
