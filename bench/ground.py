"""The ground a benchmark stands on: a namespace of its own, images, peers and their mounts.

Invariant: whatever ends the run, kill -9 included, nothing stays. All mounts live in a private mount namespace, all
daemons in a private pid namespace that dies with its first process, images are unlinked once mounted, and their loop
devices go with the last mount.

What is measured, and in which order, belongs to scripts/bench.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CLONE_NEWNS, CLONE_NEWPID, PR_SET_PDEATHSIG, MS_REMOUNT = 0x20000, 0x20000000, 1, 32
libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A peer or a workload failed; the text is for the table's footnotes."""


def run(*argv, timeout=900, check=True, quiet=True, **more):
    """Runs a program, its output kept; raises Failed with the end of its messages."""
    argv = [str(arg) for arg in argv]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=quiet, text=True, timeout=timeout, **more)
    except subprocess.TimeoutExpired:
        raise Failed(f"{Path(argv[0]).name} {argv[1] if len(argv) > 1 else ''}: no end after {timeout} s") from None
    if check and done.returncode:
        raise Failed(f"{Path(argv[0]).name}: {(done.stderr or done.stdout or '').strip()[-300:]} ({done.returncode})")
    return done


def unshare(kind):
    if libc.unshare(kind) != 0:
        sys.exit(f"bench: unshare: {os.strerror(ctypes.get_errno())}")


def enter_namespace(afterwards):
    """Goes on in a child that is the first process of its own pid and mount namespaces; the parent waits, does
    `afterwards`, and exits."""
    if os.geteuid() != 0:
        sys.exit("bench: must be root: it makes loop devices, kernel mounts and namespaces")
    unshare(CLONE_NEWPID)
    child = os.fork()
    if child:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: os.kill(child, signal.SIGKILL))
        _, status = os.waitpid(child, 0)
        afterwards()
        sys.exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 130)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Not before the fork: the parent would keep the mounts alive.
    unshare(CLONE_NEWNS)
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "proc", "proc", "/proc")


def daemons():
    """Every live process of the namespace but this one: the daemons of the mounts, when no workload runs."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]


def pss(pid):
    """Proportional set size of a process in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


class Progress:
    """What is going on: one line on a terminal, elsewhere a line for each thing that is new."""

    def __init__(self):
        self.began = time.monotonic()

    def say(self, text, done=None):
        gone = time.monotonic() - self.began
        if sys.stderr.isatty():
            left = f", {gone / done - gone:.0f} s left" if done and done > 0.02 else ""
            print(f"\r\x1b[K{gone:5.0f} s {text}{left}", end="", file=sys.stderr, flush=True)
        elif not done:
            print(f"{gone:5.0f} s {text}", file=sys.stderr, flush=True)

    @staticmethod
    def end():
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)


def remove_unmounted(base):
    """Removes a directory, once nothing is mounted in it: what is bound there must not be emptied."""
    def mounts():
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith(f"{base}/")]

    for point in reversed(mounts()):
        run("umount", "-l", point, check=False)
    if not mounts():
        shutil.rmtree(base, ignore_errors=True)


class Image:
    """A loop image, mounted and already unlinked."""

    def __init__(self, parent, name, size_gib, kind="ext4", inodes=None):
        self.path = Path(parent) / name
        self.path.mkdir()
        file = Path(parent) / f"{name}.img"
        with open(file, "wb") as image:
            image.truncate(size_gib << 30)
        make = {"ext4": ["mkfs.ext4", "-q", "-E", "nodiscard"] + (["-N", inodes] if inodes else []),
                "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}[kind]
        run(*make, file)
        # noinit_itable: the kernel would go on writing inode tables while we measure.
        run("mount", "-t", kind, "-o", "loop,noatime" + (",noinit_itable" if kind == "ext4" else ""), file, self.path)
        file.unlink()

    def settle(self):
        """Writes back what is dirty, so that no workload pays for the one before."""
        run("sync", "-f", self.path)

    def close(self):
        run("umount", self.path)
        self.path.rmdir()


class Peer:
    """One way to get a union; `command` says how to mount it, or is None for native."""

    def __init__(self, key, label, command, version=None):
        self.key, self.label, self.command, self.version = key, label, command, version

    @property
    def is_fuse(self):
        return self.key not in ("native", "overlay")

    def can(self, workload):
        """Whether a workload makes sense on it."""
        return True

    def prefixes(self, workload):
        """What the calls of the daemon, and of the program that works on its mount, begin with."""
        return [], []


class Hollow(Peer):
    """A filesystem of names in memory (bench/hollow): what no FUSE daemon can go below. Its daemon is put where cowfs with `near`
    ends up: on the processor of the one program, to which it yields. Several programs have all processors."""

    ONE, SEVERAL = ("stat", "absent", "walk", "list", "read", "create", "rename", "ask"), ("stat4", "read4")

    def can(self, workload):
        return workload in self.ONE + self.SEVERAL

    def prefixes(self, workload):
        if workload in self.SEVERAL:
            return [], []
        held = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
        return ["chrt", "-i", "0", *held], held


class Union:
    """A fresh mount of one peer over `lowers` (top first) with an empty upper in `base`; use it with `with`. `prefix`: what the
    call begins with."""

    def __init__(self, peer, lowers, base, options=(), prefix=()):
        self.peer, self.base = peer, Path(base)
        self.base.mkdir(parents=True)
        self.upper, self.work, self.point = (self.base / name for name in ("u", "w", "m"))
        for directory in (self.upper, self.work, self.point):
            directory.mkdir()
        self.pids, self.ready, before = [], 0.0, set(daemons()) if peer.is_fuse else set()
        if peer.command is None:
            self.root = self.upper
            return
        self.root = self.point
        argv = [*prefix, *peer.command([str(lower) for lower in lowers], str(self.upper), str(self.work), str(self.point), options)]
        with open(self.base / "messages", "wb") as messages:
            start = time.perf_counter()
            try:
                child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages)
            except OSError as error:
                raise Failed(f"mount: {error}") from None
            # Not child.wait(60): it sleeps between looks, and a mount takes less than its sleeps.
            ended = os.pidfd_open(child.pid)
            in_time, _, _ = select.select([ended], [], [], 60)
            self.ready = time.perf_counter() - start
            os.close(ended)
            if not in_time:
                child.kill()
            code = child.wait()
        mounted = os.path.ismount(self.point)
        if code != 0 or not mounted:
            said = "" if in_time else "no end after 60 s; "
            raise Failed(f"mount: {said}{(self.base / 'messages').read_text(errors='replace').strip()[-300:]} ({code})")
        if peer.is_fuse:
            self.pids = [pid for pid in daemons() if pid not in before]

    def forget(self):
        """Makes the kernel drop what it knows of this mount (a remount shrinks its dentries), and nothing else's."""
        if libc.mount(b"none", str(self.point).encode(), b"", MS_REMOUNT, b"") != 0:
            raise Failed(f"remount: {os.strerror(ctypes.get_errno())}")

    def kill(self):
        """For a mount that hangs: the end of its daemon ends every request."""
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.peer.command is not None and os.path.ismount(self.point):
            for _ in range(50):
                if run("umount", self.point, check=False).returncode == 0:
                    break
                time.sleep(0.02)
            else:
                self.kill()
                run("umount", "-l", self.point, check=False)
        for _ in range(250):
            if not set(self.pids) & set(daemons()):
                break
            time.sleep(0.01)
        else:
            self.kill()
        remove_unmounted(self.base)


def overlay_options(lowers, upper, work, options):
    return ",".join([f"lowerdir={':'.join(lowers)}", f"upperdir={upper}", f"workdir={work}", *options])


def known_peers(cowfs, fuse_overlayfs_2, cowfs_options, hollow=""):
    """All peers, in the order of the table; who names no `hollow` does not use it."""
    def overlay_like(program, *extra):
        return lambda low, up, work, at, opts: [program, "-o", overlay_options(low, up, work, [*opts, *extra]), at]

    def unionfs(low, up, _work, at, opts):
        # It has no volatile mode: its copies are never synced. All others check permissions without being told.
        branches = ":".join([f"{up}=RW", *(f"{lower}=RO" for lower in low)])
        return ["unionfs-fuse", "-o", ",".join(["cow,allow_other,default_permissions,max_files=16384", *opts]), branches, at]

    def ours(*extra):
        # Its own form of call; with `lowerdir=` it takes the caller for a container engine, and leaves marks out.
        def command(low, up, _work, at, opts):
            branches = ":".join([f"{up}=RW", *(f"{lower}=RO" for lower in low)])
            return [cowfs, "-o", ",".join(["cow", "allow_other", *extra, *opts, *cowfs_options]), branches, at]
        return command

    def overlay(low, up, work, at, opts):
        # mount(8) would cut longer options silently, and the mount would lack layers.
        if len(overlay_options(low, up, work, opts)) >= 4096:
            raise Failed("the lowers do not fit into a page of mount options")
        return ["mount", "-t", "overlay", "overlay", "-o", overlay_options(low, up, work, opts), at]

    return [
        Peer("native", "native ext4", None),
        Peer("overlay", "kernel overlayfs", overlay, lambda: os.uname().release),
        Peer("unionfs", "unionfs-fuse (Debian)", unionfs, lambda: debian_version("unionfs-fuse")),
        Peer("fo1", "fuse-overlayfs (Debian)", overlay_like("/usr/bin/fuse-overlayfs"),
             lambda: debian_version("fuse-overlayfs")),
        Peer("fo2", "fuse-overlayfs 2.0.0", overlay_like(fuse_overlayfs_2), lambda: "2.0.0"),
        Peer("cowfs", "cowfs", ours(), lambda: cowfs_version(cowfs)),
        Peer("awake", "cowfs awake", ours("awake")),
        Hollow("hollow", "hollow", lambda low, _up, _work, at, _opts: [hollow, low[0], at]),
        Peer("far", "cowfs near=off", ours("near=off")),
    ]


def built_cowfs(repo):
    """The program under test: $COWFS, or what cargo builds of this tree."""
    if os.environ.get("COWFS"):
        return Path(os.environ["COWFS"]).resolve(strict=True)
    run("cargo", "build", "--release", "--quiet", cwd=repo)
    built = Path(os.environ.get("CARGO_TARGET_DIR", repo / "target")).glob("**/release/cowfs")
    return max((path for path in built if path.is_file()), key=lambda path: path.stat().st_mtime)


def fuse_overlayfs_2(cache):
    """Where fuse-overlayfs 2.0.0 is, once it has been installed."""
    return Path(cache) / "fuse-overlayfs-2.0.0/bin/fuse-overlayfs"


def debian_version(package):
    return run("dpkg-query", "-W", "-f", "${Version}", package, check=False).stdout.strip()


def cowfs_version(program):
    said = run(program, "--version", check=False).stdout.split()
    commit = run("git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", check=False).stdout.strip()
    return " ".join([said[-1] if said else "?", commit])


def machine():
    """What the numbers were measured on."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), os.uname().machine)
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024 // 1024
    return f"{os.cpu_count()} x {model}, {memory} GiB, Linux {os.uname().release}"


class Requests:
    """Counts the FUSE requests of a mount by opcode, from the kernel's own trace point, in a trace of its own."""

    NAME = "cowfs-bench"

    def __init__(self):
        at = Path("/sys/kernel/tracing")
        if not (at / "events").exists():
            run("mount", "-t", "tracefs", "nodev", at)
        self.at = at / "instances" / self.NAME
        if not (at / "events/fuse/fuse_request_send").exists():
            raise Failed("this kernel has no trace point for FUSE requests")
        self.at.mkdir(exist_ok=True)
        (self.at / "buffer_size_kb").write_text("65536")

    def start(self, point):
        connection = os.minor(os.stat(point).st_dev)
        (self.at / "trace").write_text("")
        (self.at / "events/fuse/fuse_request_send/filter").write_text(f"connection == {connection}")
        (self.at / "events/fuse/fuse_request_send/enable").write_text("1")

    def stop(self):
        """The requests since `start`, by name."""
        (self.at / "events/fuse/fuse_request_send/enable").write_text("0")
        counts = {}
        with open(self.at / "trace", errors="replace") as lines:
            for line in lines:
                if "fuse_request_send:" in line:
                    name = line.split("(FUSE_")[-1].split(")")[0] if "(FUSE_" in line else line.split("opcode")[-1][:12]
                    counts[name] = counts.get(name, 0) + 1
        (self.at / "trace").write_text("")
        return counts

    def close(self):
        self.at.rmdir()
