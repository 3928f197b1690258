"""A root folder with only what the program may read and its scratch folder, entered without root privileges."""

import os
import stat

import kernel

NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# Every machine has this folder, and everything needed from it is opened before it is covered.
_MOUNT_POINT = "/dev"


def enter(settings: dict) -> None:
    """Move this process into its own mount and user namespaces; root becomes nobody.

    Root mounts as root, so its Python may be in a folder that the user nobody can't enter, such as /root; other users
    mount in the user namespace. In that namespace, the limit on a user's processes counts only the program's.

    Raises:
        OSError: if the kernel or a security module does not allow it.
    """
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        kernel.unshare(kernel.CLONE_NEWNS)
        owner = (NOBODY, NOBODY)
    else:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
        map_user(uid, gid)
        owner = (uid, gid)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    paths = [*settings["readable"], *([settings["bwrap"]] if settings["layer"] == "bubblewrap" else [])]
    sources = {path: os.open(path, os.O_PATH) for path in [*paths, *DEVICES]}
    shown = {path: os.open(path, os.O_PATH) for path in settings["shown"]}
    kernel.mount("tmpfs", _MOUNT_POINT, "tmpfs", kernel.MS_NOSUID, "mode=755,size=1m,nr_inodes=4k")
    for path, source in sources.items():
        _bind(source, _MOUNT_POINT + path, device=path in DEVICES)
        os.close(source)
    for path in settings["hidden"]:
        kernel.mount("tmpfs", _MOUNT_POINT + path, "tmpfs", kernel.MS_NOSUID, "mode=755,size=64k")
    for path, source in shown.items():
        _bind(source, _MOUNT_POINT + path, device=False)
        os.close(source)
    for path in settings["hidden"]:
        flags = kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID
        kernel.mount("none", _MOUNT_POINT + path, None, flags)
    scratch = _MOUNT_POINT + settings["scratch"]
    os.makedirs(scratch, exist_ok=True)
    data = f"mode=700,size={settings['limits']['scratch_bytes']},nr_inodes=2k,uid={owner[0]},gid={owner[1]}"
    kernel.mount("tmpfs", scratch, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, data)
    os.makedirs(_MOUNT_POINT + "/proc")
    kernel.mount("/proc", _MOUNT_POINT + "/proc", None, kernel.MS_BIND | kernel.MS_REC)
    os.chdir(_MOUNT_POINT)
    kernel.pivot_root(".", ".")
    kernel.umount(".")
    os.chdir("/")
    kernel.mount("none", "/", None, kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID)
    if uid == 0:
        become_nobody()
        kernel.unshare(kernel.CLONE_NEWUSER)
        map_user(NOBODY, NOBODY)


def become_nobody() -> None:
    """Permanently switch from root to the user nobody; other users stay unchanged."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    # Changing the user makes a process undumpable and gives its files in /proc to root.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)


def map_user(uid: int, gid: int) -> None:
    """Map only this user and group into the user namespace that this process has just entered."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _bind(source: int, target: str, device: bool) -> None:
    if stat.S_ISDIR(os.fstat(source).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    kernel.mount(f"/proc/self/fd/{source}", target, None, kernel.MS_BIND | kernel.MS_REC)
    # A user namespace may add flags to an inherited mount, but not remove any.
    inherited = os.statvfs(target).f_flag
    flags = kernel.MS_NOSUID | (inherited & (os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME))
    flags |= kernel.MS_RELATIME if inherited & os.ST_RELATIME else 0
    flags |= 0 if device else kernel.MS_RDONLY | kernel.MS_NODEV
    kernel.mount("none", target, None, kernel.MS_BIND | kernel.MS_REMOUNT | flags)
