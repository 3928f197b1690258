"""What every layer ends in: limits, Landlock and seccomp, and then the program in this process' place."""

import os
import resource

import kernel
import landlock
import quarters
import seccomp

ENVIRONMENT = {"PYTHONHASHSEED": "0"}


def become(settings: dict) -> None:
    """Confines this process and replaces it by the program.

    Raises:
        OSError: part of the confinement is not to be had; the program does not run then.
    """
    limits = settings["limits"]
    caps = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_NOFILE: limits["descriptors"],
        resource.RLIMIT_FSIZE: limits["scratch_bytes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    # The count is of the user's processes: only in a user namespace are these the program's.
    if settings["own_quarters"]:
        caps[resource.RLIMIT_NPROC] = limits["processes"]
    os.chdir(settings["scratch"])
    rights = _reading(settings)
    rights |= {path: landlock.DEVICE for path in quarters.DEVICES}
    rights[settings["scratch"]] = landlock.SCRATCH if settings["own_quarters"] else landlock.READ
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    landlock.restrict(rights)
    # Where the files of others are in sight, Landlock lets a user change their modes.
    seccomp.restrict(metadata=settings["own_quarters"])
    for limit, value in caps.items():
        resource.setrlimit(limit, (value, value))
    # Not -I, which would read no environment, and so no hash seed: sets of text would come in another order each time.
    os.execve(settings["python"], [settings["python"], "-P", "-s", "-S", settings["program"]], ENVIRONMENT)


def _reading(settings: dict) -> dict[str, int]:
    """Rights to what may be read. Of a folder that has a hidden one in it, its names and all else in it."""
    rights = {}
    for path in settings["readable"]:
        hidden = [name for name in settings["hidden"] if os.path.dirname(name) == path]
        rights[path] = landlock.NAMES if hidden else landlock.READ
        if hidden:
            rights |= {entry.path: landlock.READ for entry in os.scandir(path) if entry.path not in hidden}
    return rights | dict.fromkeys(settings["shown"], landlock.READ)
