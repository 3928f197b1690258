"""A program that tries to escape from its sandbox and reports what it achieved.

It reads JSON from standard input, which describes the targets outside. It prints JSON with one [true or false, text]
per attempt: what was achieved, or why nothing was. Each attempt is a function that returns what it achieved, and runs
in its own process.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
ATTEMPTS = {}


def attempt(free):
    """Register an attempt. `free`: who succeeds without a sandbox: "anyone", "root", or "some" kernels."""

    def register(function):
        ATTEMPTS[function.__name__] = (function, free)
        return function

    return register


def call(number, *arguments):
    """A system call by its number on x86_64."""
    result = LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def reaches_kernel(number, *arguments):
    """Whether the kernel checks the arguments of a call, which are deliberately wrong."""
    try:
        call(number, *arguments)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        return f"the kernel checked the arguments: {error}"
    return "done"


# The network


@attempt("anyone")
def tcp_v4(outside):
    socket.create_connection(("127.0.0.1", outside["tcp"]), timeout=2)
    return "connected"


@attempt("anyone")
def tcp_v6(outside):
    connection = socket.socket(socket.AF_INET6)
    connection.settimeout(2)
    connection.connect(("::1", outside["tcp6"]))
    return "connected"


@attempt("anyone")
def tcp_server(outside):
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return f"listening on {server.getsockname()}"


@attempt("anyone")
def udp(outside):
    return socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", outside["udp"]))


@attempt("anyone")
def unix_socket(outside):
    socket.socket(socket.AF_UNIX).connect(outside["unix"])
    return "connected"


@attempt("anyone")
def abstract_socket(outside):
    socket.socket(socket.AF_UNIX).connect("\0" + outside["abstract"])
    return "connected"


@attempt("anyone")
def datagram_of_a_socket_pair(outside):
    return socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b"x", "\0" + outside["abstract_datagram"])


@attempt("anyone")
def netlink(outside):
    return str(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))


@attempt("root")
def raw_socket(outside):
    return str(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))


@attempt("root")
def packet_socket(outside):
    return str(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))


@attempt("some")
def vsock(outside):
    return str(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))


# Reading


@attempt("anyone")
def read_a_file(outside):
    return open(outside["secret"]).read()


@attempt("anyone")
def read_etc_passwd(outside):
    return open("/etc/passwd").read()


@attempt("anyone")
def list_root(outside):
    return os.listdir("/")


@attempt("anyone")
def list_home(outside):
    return str(os.listdir(outside["home"]))


@attempt("anyone")
def read_the_repository(outside):
    return open(outside["repository"]).read()


@attempt("anyone")
def list_installed_packages(outside):
    return ", ".join(os.listdir(outside["packages"]))


@attempt("anyone")
def read_the_environment(outside):
    return os.environ["SECRET_OF_THE_PARENT"]


@attempt("anyone")
def read_own_proc(outside):
    return open("/proc/self/status").read()


@attempt("anyone")
def read_the_parents_environment(outside):
    return open(f"/proc/{outside['parent']}/environ", "rb").read().decode(errors="replace")


@attempt("anyone")
def read_the_parents_command(outside):
    return open(f"/proc/{outside['parent']}/cmdline").read()


@attempt("anyone")
def read_through_proc_self_root(outside):
    return open(f"/proc/self/root{outside['secret']}").read()


@attempt("anyone")
def read_through_the_parents_folder(outside):
    return str(os.listdir(f"/proc/{outside['parent']}/cwd"))


@attempt("anyone")
def read_through_a_symbolic_link(outside):
    os.symlink(outside["secret"], "link")
    return open("link").read()


@attempt("anyone")
def climb_out_of_the_scratch_folder(outside):
    return open("../" * 12 + outside["secret"]).read()


@attempt("root")
def make_a_hard_link(outside):
    os.link(outside["secret"], outside["secret"] + f".{os.getpid()}")
    return "linked"


@attempt("anyone")
def read_sys(outside):
    return str(os.listdir("/sys"))


@attempt("some")
def read_a_disk(outside):
    for name in os.listdir("/dev"):
        if stat.S_ISBLK(os.stat(f"/dev/{name}").st_mode):
            return open(f"/dev/{name}", "rb").read(1)
    return ""


@attempt("some")
def read_the_memory_of_the_machine(outside):
    return open("/dev/mem", "rb").read(1)


@attempt("some")
def inherited_descriptors(outside):
    return str(outside["open at start"] or "")


# Writing


@attempt("anyone")
def write_a_file(outside):
    return open(outside["secret"], "a").write("x")


@attempt("anyone")
def truncate_a_file(outside):
    os.truncate(outside["secret"], 100)
    return "truncated"


@attempt("root")
def change_a_mode(outside):
    os.chmod(outside["secret"], 0o666)
    return "changed"


@attempt("anyone")
def make_a_file_in_tmp(outside):
    path = os.path.join(os.path.dirname(outside["secret"]), f"made-{os.getpid()}")
    open(path, "w").close()
    return path


@attempt("anyone")
def rename_a_file(outside):
    os.rename(outside["renamed"], outside["renamed"] + ".gone")
    os.rename(outside["renamed"] + ".gone", outside["renamed"])
    return "renamed"


@attempt("root")
def write_to_the_standard_library(outside):
    open(json.__file__, "a").close()
    return "opened"


@attempt("anyone")
def write_to_its_own_program(outside):
    open(__file__, "a").close()
    return "opened"


@attempt("root")
def make_a_device(outside):
    os.mknod("device", stat.S_IFBLK | 0o600, os.makedev(1, 0))
    return "made"


# Other processes


@attempt("anyone")
def signal_another_process(outside):
    os.kill(outside["victim"], signal.SIGCONT)
    return "sent"


@attempt("anyone")
def signal_the_parent(outside):
    os.kill(outside["parent"], signal.SIGCONT)
    return "sent"


@attempt("root")
def signal_the_first_process(outside):
    os.kill(1, signal.SIGCONT)
    return "sent"


@attempt("anyone")
def signal_through_a_descriptor(outside):
    signal.pidfd_send_signal(os.pidfd_open(outside["victim"]), signal.SIGCONT)
    return "sent"


@attempt("anyone")
def trace(outside):
    call(101, 16, outside["victim"], 0, 0)
    os.waitpid(outside["victim"], 0x40000000)
    return "attached"


@attempt("some")
def read_memory(outside):
    open(f"/proc/{outside['victim']}/mem", "rb").close()
    return "opened"


@attempt("some")
def read_memory_by_a_call(outside):
    return reaches_kernel(310, outside["victim"], None, 0, None, 0, 0)


@attempt("some")
def take_a_descriptor(outside):
    return str(call(438, os.pidfd_open(outside["victim"]), 0, 0))


@attempt("some")
def limit_another_process(outside):
    return str(resource.prlimit(outside["victim"], resource.RLIMIT_CORE, (0, 0)))


@attempt("anyone")
def slow_another_process(outside):
    os.setpriority(os.PRIO_PROCESS, outside["victim"], 5)
    return "slowed"


@attempt("anyone")
def run_a_shell(outside):
    return subprocess.run(["/bin/sh", "-c", "echo out"], capture_output=True, text=True).stdout


# Namespaces, users, the machine


@attempt("root")
def unshare_mounts(outside):
    return "done" if call(272, 0x00020000) == 0 else ""


@attempt("some")
def unshare_users(outside):
    return "done" if call(272, 0x10000000) == 0 else ""


@attempt("some")
def clone_users(outside):
    child = call(56, 0x10000000 | signal.SIGCHLD, None, None, None, None)
    if child == 0:
        os._exit(0)
    return f"process {child}"


@attempt("root")
def mount(outside):
    call(272, 0x00020000)
    call(165, b"none", b"/", None, 0x44000, None)
    call(165, b"tmpfs", b".", b"tmpfs", 0, None)
    return "mounted"


@attempt("root")
def change_root(outside):
    os.chroot(".")
    return "changed"


@attempt("root")
def become_root(outside):
    os.setresuid(0, 0, 0)
    return "root"


@attempt("root")
def become_another_group(outside):
    os.setgroups([0, 1, 2])
    return "changed"


@attempt("root")
def set_the_clock(outside):
    return reaches_kernel(227, -1, None)


@attempt("some")
def load_a_module(outside):
    return reaches_kernel(313, -1, b"", 0)


@attempt("anyone")
def raise_the_limit_of_memory(outside):
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "raised"


@attempt("anyone")
def dump_core(outside):
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, hard))
    return "allowed"


# Parts of the kernel with a history of vulnerabilities


@attempt("some")
def io_uring(outside):
    return reaches_kernel(425, 1, None)


@attempt("some")
def bpf(outside):
    return reaches_kernel(321, -1, None, 0)


@attempt("some")
def keys(outside):
    return reaches_kernel(248, b"user", b"name", b"x", 1, -4)


@attempt("some")
def userfaultfd(outside):
    return reaches_kernel(323, 1)


@attempt("some")
def perf_event(outside):
    return reaches_kernel(298, None, 0, -1, -1, 0)


@attempt("anyone")
def memory_file(outside):
    return str(os.memfd_create("x"))


@attempt("anyone")
def shared_memory(outside):
    made = LIBC.shmget(0, 4096, 0o1600)
    if made < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    LIBC.shmctl(made, 0, None)
    return f"segment {made}"


# Bombs


@attempt("anyone")
def fork_bomb(outside):
    children = []
    try:
        while len(children) < 100:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError as error:
        if len(children) < 40:
            raise
        return f"{len(children)} processes until {error}"
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return f"{len(children)} processes"


@attempt("anyone")
def thread_bomb(outside):
    threading.stack_size(32768)
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, daemon=True) for _ in range(400)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise OSError(str(error)) from None
    finally:
        end.set()
    return "400 threads"


@attempt("anyone")
def memory_bomb(outside):
    return f"{len(mmap.mmap(-1, 2 << 30))} bytes"


@attempt("anyone")
def descriptor_bomb(outside):
    return f"{len([os.open('/dev/null', os.O_RDONLY) for _ in range(200)])} descriptors"


@attempt("anyone")
def disk_bomb(outside):
    for number in range(80):
        with open(f"part{number}", "wb") as file:
            file.write(bytes(1 << 20))
    return "80 MiB"


@attempt("anyone")
def disk_bomb_in_one_file(outside):
    with open("whole", "wb", buffering=0) as file:
        for _ in range(80):
            if file.write(bytes(1 << 20)) < 1 << 20:
                raise OSError(errno.ENOSPC, "cut short")
    return "80 MiB"


@attempt("anyone")
def sparse_file(outside):
    with open("sparse", "wb") as file:
        file.truncate(1 << 40)
    return "1 TiB"


@attempt("anyone")
def many_small_files(outside):
    for number in range(3000):
        open(f"small{number}", "w").close()
    return "3000 files"


@attempt("some")
def segmentation_fault(outside):
    ctypes.string_at(0)


@attempt("some")
def deep_recursion(outside):
    sys.setrecursionlimit(10**7)

    class Deeper:
        def __add__(self, other):
            return self + other

    return Deeper() + 1


def report(name, outside):
    """Run an attempt in its own process and its own empty folder."""
    read, write = os.pipe()
    os.makedirs(name, exist_ok=True)
    child = os.fork()
    if child == 0:
        os.chdir(name)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        signal.alarm(10)
        try:
            achieved = ATTEMPTS[name][0](outside)
            result = [bool(achieved), str(achieved)[:100]]
        except (OSError, MemoryError, KeyError, ValueError) as error:
            result = [False, f"{type(error).__name__}: {error}"]
        os.write(write, json.dumps(result).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    shutil.rmtree(name, ignore_errors=True)
    return json.loads(text) if text else [False, f"ended with {os.waitstatus_to_exitcode(status)}"]


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    given["open at start"] = [number for number in range(3, 100) if is_open(number)]
    print(json.dumps({name: report(name, given) for name in ATTEMPTS}), flush=True)
