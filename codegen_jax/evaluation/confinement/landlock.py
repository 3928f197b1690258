"""Landlock: restricts which files a process and its descendants can open, whatever their user's permissions."""

import ctypes
import os

import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REMOVE_DIR, _REMOVE_FILE, _MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (
    1 << n for n in range(4, 13)
)
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

READ = _EXECUTE | _READ_FILE | _READ_DIR
NAMES = _READ_DIR
DEVICE = _READ_FILE | _WRITE_FILE
SCRATCH = (
    _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_FIFO | _MAKE_SYM
) | (_REFER | _TRUNCATE)


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("ports", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def abi() -> int:
    """The kernel's Landlock ABI version; 0 without Landlock."""
    try:
        return kernel.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def restrict(rights: dict[str, int]) -> None:
    """Restrict this process to `rights` beneath each path, with no rights elsewhere.

    If the kernel is new enough, TCP ports, abstract sockets and signals to other processes are also denied. Without
    Landlock, nothing is restricted.
    """
    version = abi()
    if version == 0:
        return
    known = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}.get(version, (1 << 16) - 1)
    ruleset = _Ruleset(known, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    # Older kernels accept a larger size than they know if the rest is zero.
    size = ctypes.c_size_t(ctypes.sizeof(ruleset))
    descriptor = kernel.syscall(_CREATE_RULESET, ctypes.byref(ruleset), size, ctypes.c_uint32(0))
    for path, allowed in rights.items():
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            allowed &= _FILE_RIGHTS
        rule = _PathBeneath(allowed & known, parent)
        kernel.syscall(_ADD_RULE, descriptor, 1, ctypes.byref(rule), ctypes.c_uint32(0))
        os.close(parent)
    kernel.syscall(_RESTRICT_SELF, descriptor, ctypes.c_uint32(0))
    os.close(descriptor)
