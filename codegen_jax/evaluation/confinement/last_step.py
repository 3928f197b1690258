"""The last step of every layer: sets limits, Landlock and seccomp, then replaces this process with the program."""

import os
import resource

import kernel
import landlock
import quarters
import seccomp

ENVIRONMENT = {"PYTHONHASHSEED": "0"}


def confine_and_exec(settings: dict) -> None:
    """Confine this process and replace it with the program.

    Raises:
        OSError: if part of the confinement is unavailable; the program does not run then.
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
    # The limit counts all of the user's processes, and only in a user namespace are they all the program's.
    if settings["private_root"]:
        caps[resource.RLIMIT_NPROC] = limits["processes"]
    os.chdir(settings["scratch"])
    rights = _reading(settings)
    rights |= {path: landlock.DEVICE for path in quarters.DEVICES}
    rights[settings["scratch"]] = landlock.SCRATCH if settings["private_root"] else landlock.READ
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    landlock.restrict(rights)
    # If other files are visible, Landlock does not stop a user from changing their modes.
    seccomp.restrict(metadata=settings["private_root"])
    for limit, value in caps.items():
        resource.setrlimit(limit, (value, value))
    # Not -I: it ignores the environment and so the hash seed; the order of sets of strings would then vary.
    os.execve(settings["python"], [settings["python"], "-P", "-s", "-S", settings["program"]], ENVIRONMENT)


def _reading(settings: dict) -> dict[str, int]:
    """Read rights by path. In a folder with a hidden entry, all names can be listed and all other entries read."""
    rights = {}
    for path in settings["readable"]:
        hidden = [name for name in settings["hidden"] if os.path.dirname(name) == path]
        rights[path] = landlock.NAMES if hidden else landlock.READ
        if hidden:
            rights |= {entry.path: landlock.READ for entry in os.scandir(path) if entry.path not in hidden}
    return rights | dict.fromkeys(settings["shown"], landlock.READ)
