"""Names of signals as Linux numbers them: the operator may run elsewhere than the pods."""

from __future__ import annotations

_NAMES = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
    24: "SIGXCPU", 25: "SIGXFSZ", 31: "SIGSYS",
}  # fmt: skip
_NUMBERS = {name: number for number, name in _NAMES.items()}
_HINTS = {"SIGKILL": " (out of memory?)", "SIGBUS": " (is /dev/shm full?)"}


def name(number: int) -> str:
    return _NAMES.get(number, f"signal {number}")


def number(name: str) -> int | None:
    return _NUMBERS.get(name.upper())


def hint(name: str) -> str:
    """What mostly stands behind it."""
    return _HINTS.get(name, "")


def from_exit_code(code: int) -> int | None:
    """The signal in a negative exit code (Python's) or one of 128 and more (a shell's and the kubelet's)."""
    if code < 0:
        return -code
    return code - 128 if code - 128 in _NAMES else None
