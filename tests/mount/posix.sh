#!/bin/bash
# What a program may expect of ext4 the union does: the same calls on a plain directory and on a mount, answer by answer; the
# trees are equal in the end, after forget and after a remount, in every format of marks.
# timeout: 500
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=120
. "$TEST_DIR/programs/cache.bash"
need setfacl=acl
RUN=$T/.test/posix.py
cat >"$RUN" <<'PY'
"""posix.py prepare DIR: what stands in the lower. posix.py run UNION PLAIN PART...: the calls."""
from lib import *
import itertools
import json
import select
import signal
import subprocess

USER = 54321
NO_REDIRECT = os.environ.get("NO_REDIRECT")


def child(call, uid=None):
    """Runs in a process of its own, as `uid` if given; its value, or ["errno", N]."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid is not None:
                os.setgroups([]), os.setgid(uid), os.setuid(uid)
            value = call()
        except OSError as error:
            value = ["errno", errno.errorcode[error.errno]]
        os.write(write, json.dumps(value).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        value = json.loads(pipe.read() or '"died"')
    os.waitpid(pid, 0)
    return value


def answer(call, *args, **kwargs):
    try:
        return "ok", call(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno], None


# ---- renames: every kind of object, onto every other, with every flag ---------------------------------------------------

# What there is in the lower ("" if nothing), and what is done to it in the union.
KINDS = {
    "none": ("", None),
    "deleted": ("f", lambda p: os.unlink(p)),
    "lower-file": ("f", None),
    "upper-file": ("", lambda p: write_file(p, b"upper")),
    "copied-file": ("f", lambda p: append_file(p, b"+")),
    "bare-file": ("f", lambda p: os.chmod(p, 0o640)),
    "linked-file": ("h", None),
    "remade-file": ("f", lambda p: (os.unlink(p), write_file(p, b"again"))),
    "lower-link": ("l", None),
    "lower-fifo": ("p", None),
    "lower-empty": ("e", None),
    "lower-dir": ("d", None),
    "upper-empty": ("", lambda p: os.mkdir(p)),
    "upper-dir": ("", lambda p: (os.mkdir(p), write_file(f"{p}/u", b"u"))),
    "merged-dir": ("d", lambda p: write_file(f"{p}/u", b"u")),
    "emptied-dir": ("d", lambda p: (os.unlink(f"{p}/x"), os.rmdir(f"{p}/sub"))),
    "remade-dir": ("d", lambda p: (os.unlink(f"{p}/x"), os.rmdir(f"{p}/sub"), os.rmdir(p), os.mkdir(p), write_file(f"{p}/n", b"n"))),
}
LOWER_PARTS = {"lower-empty", "lower-dir", "merged-dir", "emptied-dir"}
FLAGS = {"plain": 0, "noreplace": RENAME_NOREPLACE, "exchange": RENAME_EXCHANGE}


def cases():
    for number, (one, two, flag) in enumerate(itertools.product(KINDS, KINDS, FLAGS)):
        yield f"{number:03}", one, two, flag


def plant(what, path):
    if what == "f":
        write_file(path, b"lower " + os.fsencode(path[-3:]))
    elif what == "h":
        write_file(path, b"linked")
        os.link(path, path + "-twin")
    elif what == "l":
        os.symlink("target", path)
    elif what == "p":
        os.mkfifo(path)
    elif what in ("d", "e"):
        os.mkdir(path)
        if what == "d":
            write_file(f"{path}/x", b"x")
            os.mkdir(f"{path}/sub")


def prepare_renames(d):
    for number, one, two, _ in cases():
        os.makedirs(f"{d}/{number}/a")
        os.makedirs(f"{d}/{number}/b")
        plant(KINDS[one][0], f"{d}/{number}/a/from")
        # In every other case both names are in one directory.
        plant(KINDS[two][0], f"{d}/{number}/{'ab'[int(number) % 2]}/to")


def run_renames(union, plain):
    wrong = []
    for number, one, two, flag in cases():
        answers = []
        for d in (union, plain):
            old, new = f"{d}/{number}/a/from", f"{d}/{number}/{'ab'[int(number) % 2]}/to"
            for kind, path in ((one, old), (two, new)):
                if KINDS[kind][1]:
                    KINDS[kind][1](path)
            if d == plain and answers == ["EXDEV"] and NO_REDIRECT and (one in LOWER_PARTS or (flag == "exchange" and two in LOWER_PARTS)):
                answers = []
                break
            answers.append(answer(renameat2, old, new, FLAGS[flag])[0])
        if answers and answers[0] != answers[1]:
            wrong.append(f"{flag}: {one} onto {two}: {answers[0]}, plain {answers[1]}")
    equal(f"{len(list(cases()))} renames of everything onto everything answer as on a plain directory", wrong, [])


# ---- rights that a change takes away --------------------------------------------------------------------------------

CAPS = bytes.fromhex("0000000200040000000000000000000000000000")


def on_fd(act, flags=os.O_RDWR):
    def call(path):
        fd = os.open(path, flags)
        try:
            act(fd)
        finally:
            os.close(fd)
    return call


def map_store(fd):
    with mmap.mmap(fd, 4096) as view:
        view[0:1] = b"M"
        view.flush()


def copy_into(fd):
    source = os.open("/etc/passwd", os.O_RDONLY)
    buffer = os.pread(source, 10, 0)
    os.close(source)
    os.pwritev(fd, [buffer], 3)


CHANGES = {
    "write": on_fd(lambda fd: os.write(fd, b"x")),
    "write of nothing": on_fd(lambda fd: os.write(fd, b"")),
    "pwritev": on_fd(copy_into),
    "append": on_fd(lambda fd: os.write(fd, b"x"), os.O_WRONLY | os.O_APPEND),
    "direct": on_fd(lambda fd: os.write(fd, mmap.mmap(-1, 4096)), os.O_WRONLY | os.O_DIRECT),
    "truncate": lambda path: os.truncate(path, 5),
    "truncate to its size": lambda path: os.truncate(path, 8192),
    "growing truncate": lambda path: os.truncate(path, 10000),
    "ftruncate": on_fd(lambda fd: os.ftruncate(fd, 5)),
    "O_TRUNC": on_fd(lambda fd: None, os.O_WRONLY | os.O_TRUNC),
    "fallocate": on_fd(lambda fd: fallocate(fd, 0, 0, 20480)),
    "fallocate, keep size": on_fd(lambda fd: fallocate(fd, FALLOC_KEEP_SIZE, 0, 20480)),
    "punch": on_fd(lambda fd: fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 4096)),
    "zero": on_fd(lambda fd: fallocate(fd, FALLOC_ZERO, 0, 4096)),
    "map": on_fd(map_store),
    "open for writing": on_fd(lambda fd: None),
    "chmod": lambda path: os.chmod(path, os.stat(path).st_mode & 0o7777),
    "chown of nothing": lambda path: os.chown(path, -1, -1),
    "chown to the same": lambda path: os.chown(path, os.stat(path).st_uid, os.stat(path).st_gid),
    "chgrp": lambda path: os.chown(path, -1, os.getegid()),
    "utime": lambda path: os.utime(path, (5, 5)),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"a"),
    "link": lambda path: os.link(path, path + ".l"),
    "rename": lambda path: os.rename(path, path + ".r"),
}
MODES = (0o4755, 0o2755, 0o2644, 0o6777)


def right_files():
    for who, (number, what), mode in itertools.product(("root", "owner"), enumerate(CHANGES), MODES):
        yield f"{who}-{number}-{mode:o}", who, what, mode


def prepare_rights(d):
    os.chmod(d, 0o777)
    for name, who, what, mode in right_files():
        write_file(f"{d}/{name}", pattern("rights", 8192))
        if who == "owner":
            os.chown(f"{d}/{name}", USER, USER)
        os.chmod(f"{d}/{name}", mode)
        if mode == 0o6777:
            os.setxattr(f"{d}/{name}", "security.capability", CAPS)


def run_rights(union, plain):
    wrong = []
    for name, who, what, mode in right_files():
        seen = []
        for d in (union, plain):
            if d == union and mode == 0o2755:
                os.utime(f"{d}/{name}", (7, 7))
            path = f"{d}/{name}"
            got = child(lambda: CHANGES[what](path), USER if who == "owner" else None)
            path += {"rename": ".r"}.get(what, "")
            caps = "caps" if "security.capability" in os.listxattr(path) else ""
            seen.append((f"{os.stat(path).st_mode & 0o7777:o}", caps, got))
        if what == "map" and seen[0][1] == "":
            # A store through a map comes to the daemon as a write: capabilities go, too early rather than too late.
            os.removexattr(f"{plain}/{name}", "security.capability") if seen[1][1] else None
            seen[1] = (seen[1][0], "", seen[1][2])
        if what == "chown of nothing" and mode == 0o6777 and seen[0][0] == "6777":
            # The kernel announces a write to a file with capabilities by the very same requests.
            os.chmod(f"{plain}/{name}", mode)
            seen[1] = ("6777", *seen[1][1:])
        if seen[0] != seen[1]:
            wrong.append(f"{what} by {who} of {mode:o}: {seen[0]}, plain {seen[1]}")
    for line in wrong:
        print("#", line)
    equal("set-id bits and capabilities go when, and only when, they do on a plain directory", wrong, [])


# ---- times --------------------------------------------------------------------------------------------------------------

SECONDS = (-(1 << 31), -1, 0, 1, 1 << 31, 1 << 32, 9_223_372_036, 9_223_372_037, 13_000_000_000, (1 << 34) - (1 << 31) - 1)
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2


def prepare_times(d):
    for n in range(len(SECONDS)):
        for kind in ("low", "set"):
            write_file(f"{d}/{kind}{n}", b"t")
            os.utime(f"{d}/{kind}{n}", ns=((SECONDS[n] * 10**9 + 7), SECONDS[n] * 10**9 + 999_999_999))
        os.symlink("x", f"{d}/link{n}")
    for name in ("omit-a", "omit-m", "omit-both", "now-a", "now-m", "both-now"):
        write_file(f"{d}/{name}", b"t")
        os.utime(f"{d}/{name}", (1000, 2000))


def set_times(path, atime, mtime):
    value = struct.pack("qqqq", *atime, *mtime)
    if ctypes.CDLL(None, use_errno=True).utimensat(AT_FDCWD, os.fsencode(path), value, 0x100) != 0:
        raise OSError(ctypes.get_errno(), "utimensat")


def run_times(union, plain):
    for d in (union, plain):
        for n, seconds in enumerate(SECONDS):
            os.chmod(f"{d}/low{n}", 0o600)
            set_times(f"{d}/set{n}", (seconds, 5), (seconds, 6))
            set_times(f"{d}/link{n}", (seconds, 0), (seconds, 999_999_999))
            write_file(f"{d}/new{n}", b"n")
            os.utime(f"{d}/new{n}", ns=(seconds * 10**9, seconds * 10**9 + 1))
        set_times(f"{d}/omit-a", (0, OMIT), (5, 6))
        set_times(f"{d}/omit-m", (5, 6), (0, OMIT))
        set_times(f"{d}/omit-both", (0, OMIT), (0, OMIT))
        set_times(f"{d}/now-a", (0, NOW), (5, 6))
        set_times(f"{d}/now-m", (5, 6), (0, NOW))
        set_times(f"{d}/both-now", (0, NOW), (0, NOW))
    now = time.time()
    facts = lambda d: {n: [t if t < (now - 100) * 10**9 or t > (now + 100) * 10**9 else "now" for t in (os.lstat(f"{d}/{n}").st_atime_ns, os.lstat(f"{d}/{n}").st_mtime_ns)] for n in sorted(os.listdir(d))}
    equal("times from 1901 to 2446, left alone, and now", facts(union), facts(plain))


# ---- names and paths ------------------------------------------------------------------------------------------------------


def prepare_paths(d):
    for size in (247, 248, 255):
        write_file(f"{d}/{'n' * size}", b"long")
    path_below(d, ["deep" + "d" * 36] * 100)


def run_paths(union, plain):
    long = "x" * 256
    for d in (union, plain):
        os.mkdir(f"{d}/dir")
    calls = {
        "open": lambda d: os.open(f"{d}/{long}", os.O_RDONLY),
        "create": lambda d: os.open(f"{d}/{long}", os.O_CREAT | os.O_WRONLY),
        "mkdir": lambda d: os.mkdir(f"{d}/{long}"),
        "mkdir in a lower directory": lambda d: os.mkdir(f"{d}/deep{'d' * 36}/{long}"),
        "symlink": lambda d: os.symlink("x", f"{d}/{long}"),
        "link": lambda d: os.link(f"{d}/{'n' * 255}", f"{d}/{long}"),
        "rename to": lambda d: os.rename(f"{d}/{'n' * 255}", f"{d}/{long}"),
        "rename of": lambda d: os.rename(f"{d}/{long}", f"{d}/y"),
        "unlink": lambda d: os.unlink(f"{d}/{long}"),
        "rmdir": lambda d: os.rmdir(f"{d}/dir/{long}"),
        "stat of 1024": lambda d: os.stat(f"{d}/{'x' * 1024}"),
        "a path of 4096": lambda d: os.stat(f"{d}/{'./' * 2048}x"),
        "symlink of 4095": lambda d: os.symlink("t" * 4095, f"{d}/longest"),
        "symlink of 4096": lambda d: os.symlink("t" * 4096, f"{d}/too-long"),
        "empty": lambda d: os.mkdir(""),
        "unlink of 255": lambda d: os.unlink(f"{d}/{'n' * 255}"),
        "unlink of 248": lambda d: os.unlink(f"{d}/{'n' * 248}"),
        "unlink of 247": lambda d: os.unlink(f"{d}/{'n' * 247}"),
        "again, a directory of 255": lambda d: os.mkdir(f"{d}/{'n' * 255}"),
    }
    got = {name: (answer(call, union)[0], answer(call, plain)[0]) for name, call in calls.items()}
    equal("names and paths that are too long", {n: g for n, g in got.items() if g[0] != g[1]}, {})

    def walk(d):
        """chdir beyond PATH_MAX, work there, and come back."""
        os.chdir(d)
        for _ in range(100):
            os.chdir("deep" + "d" * 36)
        write_file("leaf", b"leaf")
        for n in range(60):
            os.mkdir(f"more{n:03}" + "m" * 90)
            os.chdir(f"more{n:03}" + "m" * 90)
        write_file("end", b"end")
        os.rename("end", "renamed")
        size = answer(lambda: len(os.getcwd()) > 4096)[0]
        for _ in range(160):
            os.chdir("..")
        return [size, os.stat(".").st_ino == os.stat(d).st_ino, len(os.listdir("."))]

    equal("working 10,000 bytes deep by chdir", child(lambda: walk(os.path.abspath(union))), child(lambda: walk(os.path.abspath(plain))))


# ---- locks, maps, leases: several descriptors and processes over a copy-up -----------------------------------------------

F_OFD_GETLK, F_OFD_SETLK = 36, 37


def lock(kind, start, length):
    return struct.pack("hhqqi4x", kind, 0, start, length, 0)


def prepare_sharing(d):
    for name in ("posix", "ofd", "flock", "maps", "append", "direct", "lease-r", "lease-w", "grow", "mtime"):
        write_file(f"{d}/{name}", b"0123456789abcdef" * 1024)


def run_sharing(union, plain):
    for d, where in ((plain, "plain"), (union, "union")):
        p = lambda name: f"{d}/{name}"
        # Locks taken before the copy-up hold against descriptors opened after it.
        old = os.open(p("posix"), os.O_RDONLY)
        fcntl.fcntl(old, fcntl.F_SETLK, lock(fcntl.F_RDLCK, 10, 20))

        def other():
            new = os.open(p("posix"), os.O_RDWR)
            os.pwrite(new, b"W", 0)
            held = struct.unpack("hhqqi4x", fcntl.fcntl(new, fcntl.F_GETLK, lock(fcntl.F_WRLCK, 0, 0)))
            return [attempt(fcntl.fcntl, new, fcntl.F_SETLK, lock(fcntl.F_WRLCK, 15, 1)),
                    attempt(fcntl.fcntl, new, fcntl.F_SETLK, lock(fcntl.F_WRLCK, 40, 5)), held[2], held[3], held[4] == os.getppid()]

        equal(f"{where}: fcntl locks over a copy-up", child(other), [errno.EAGAIN, 0, 10, 20, True])
        os.close(old)
        old = os.open(p("ofd"), os.O_RDONLY)
        fcntl.fcntl(old, F_OFD_SETLK, lock(fcntl.F_RDLCK, 0, 0))
        new = os.open(p("ofd"), os.O_RDWR)
        fails(f"{where}: open-file-description locks over a copy-up", errno.EAGAIN, fcntl.fcntl, new, F_OFD_SETLK, lock(fcntl.F_WRLCK, 5, 1))
        os.close(old)
        works(f"{where}: and are given back by close", fcntl.fcntl, new, F_OFD_SETLK, lock(fcntl.F_WRLCK, 5, 1))
        os.close(new)
        old = os.open(p("flock"), os.O_RDONLY)
        fcntl.flock(old, fcntl.LOCK_SH)
        new = os.open(p("flock"), os.O_WRONLY)
        os.write(new, b"W")
        fails(f"{where}: flock over a copy-up", errno.EAGAIN, fcntl.flock, new, fcntl.LOCK_EX | fcntl.LOCK_NB)
        works(f"{where}: shared with shared", fcntl.flock, new, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(old), os.close(new)
        # Maps in several processes, made before and after the copy-up.
        early = mmap.mmap(os.open(p("maps"), os.O_RDONLY), 16384, mmap.MAP_SHARED, mmap.PROT_READ)
        early[0:1]

        def store(at):
            view = mmap.mmap(os.open(p("maps"), os.O_RDWR), 16384)
            view[at:at + 5] = b"STORE"
            return 0

        for at in (0, 5000, 12000):
            child(lambda: store(at))
        equal(f"{where}: shared maps of several processes over a copy-up", [early[at:at + 5] for at in (0, 5000, 12000)], [b"STORE"] * 3)
        equal(f"{where}: and reads", child(lambda: read_file(p("maps"))[5000:5005].decode()), "STORE")
        before = os.stat(p("mtime")).st_mtime_ns
        time.sleep(0.05)
        fd = os.open(p("mtime"), os.O_RDWR)
        with mmap.mmap(fd, 16384) as view:
            view[9:10] = b"M"
        os.close(fd)
        os.sync()
        check(f"{where}: a store moves mtime", os.stat(p("mtime")).st_mtime_ns > before)
        # Several writers at the end of one file, each record whole.
        pids = []
        for writer in range(4):
            pid = os.fork()
            if pid == 0:
                fd = os.open(p("append"), os.O_WRONLY | os.O_APPEND)
                for n in range(250):
                    os.write(fd, b"%02d:%04d:" % (writer, n) + b"r" * 91 + b"\n")
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        data = read_file(p("append"))[16384:]
        records = sorted(data[at:at + 100] for at in range(0, len(data), 100))
        want = sorted(b"%02d:%04d:" % (w, n) + b"r" * 91 + b"\n" for w in range(4) for n in range(250))
        check(f"{where}: four writers append 1000 records, none lost", records == want, f"{len(data)} bytes")
        # Their order is nobody's business.
        os.unlink(p("append"))
        # O_DIRECT beside buffered descriptors, over a copy-up.
        page = mmap.mmap(-1, 4096)
        direct = os.open(p("direct"), os.O_RDONLY | os.O_DIRECT)
        buffered = os.open(p("direct"), os.O_RDONLY)
        os.preadv(direct, [page], 0), os.pread(buffered, 10, 0)
        writer = os.open(p("direct"), os.O_RDWR | os.O_DIRECT)
        page[0:6] = b"DIRECT"
        os.pwritev(writer, [page], 4096)
        equal(f"{where}: O_DIRECT, a buffered reader", os.pread(buffered, 6, 4096), b"DIRECT")
        page[0:6] = b"......"
        os.preadv(direct, [page], 4096)
        equal(f"{where}: O_DIRECT, a direct reader from before", page[0:6], b"DIRECT")
        second = os.open(p("direct"), os.O_WRONLY)
        os.pwrite(second, b"BUFFER", 4096)
        os.preadv(writer, [page], 4096)
        equal(f"{where}: O_DIRECT after a buffered write", page[0:6], b"BUFFER")
        for fd in (direct, buffered, writer, second):
            os.close(fd)
        # A reader that waits for a file to grow.
        reader = os.open(p("grow"), os.O_RDONLY)
        os.lseek(reader, 0, os.SEEK_END)
        for n in range(3):
            child(lambda: append_file(p("grow"), b"line %d\n" % n))
            equal(f"{where}: a reader at the end sees what is appended", os.read(reader, 100), b"line %d\n" % n)
        os.close(reader)
    leases = {d: child(lambda: lease(d)) for d in (union, plain)}
    equal("leases as on a plain directory", leases[union], leases[plain])


def lease(d):
    broken = []
    signal.signal(signal.SIGIO, lambda *_: broken.append(1))
    fd = os.open(f"{d}/lease-r", os.O_RDONLY)
    got = [answer(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)[0], fcntl.fcntl(fd, fcntl.F_GETLEASE)]
    got.append(child(lambda: os.close(os.open(f"{d}/lease-r", os.O_RDONLY))))
    got.append(child(lambda: os.close(os.open(f"{d}/lease-r", os.O_WRONLY | os.O_NONBLOCK))))
    deadline = time.monotonic() + 30
    while not broken and time.monotonic() < deadline:
        time.sleep(0.01)
    got.append(len(broken) > 0)
    answer(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    os.close(fd)
    fd = os.open(f"{d}/lease-w", os.O_RDWR)
    got += [answer(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)[0], fcntl.fcntl(fd, fcntl.F_GETLEASE)]
    return got


# ---- who makes what where ------------------------------------------------------------------------------------------------


def prepare_making(d):
    for name, mode in (("setgid", 0o2777), ("plain", 0o777), ("sticky", 0o3777), ("acl", 0o777), ("acl-setgid", 0o2777)):
        os.mkdir(f"{d}/{name}")
        os.chown(f"{d}/{name}", 0, 12)
        os.chmod(f"{d}/{name}", mode)
        for old in ("f", "d", "l"):
            write_file(f"{d}/{name}/deleted-{old}", b"old")
    for name in ("acl", "acl-setgid"):
        subprocess.run(["setfacl", "-d", "-m", f"u:{USER}:rwx,g:12:r-x,m::rwx,o::---", f"{d}/{name}"], check=True)


def run_making(union, plain):
    for d in (union, plain):
        for name in sorted(os.listdir(d)):
            for old in ("f", "d", "l"):
                os.unlink(f"{d}/{name}/deleted-{old}")

            def make():
                for mask in (0, 0o22, 0o77):
                    os.umask(mask)
                    for mode in (0o777, 0o640, 0o2755, 0o6711, 0o1777):
                        os.close(os.open(f"{d}/{name}/f{mode:o}-{mask:o}", os.O_CREAT | os.O_WRONLY, mode))
                        os.mkdir(f"{d}/{name}/d{mode:o}-{mask:o}", mode)
                        os.mkfifo(f"{d}/{name}/p{mode:o}-{mask:o}", mode)
                # Where something was deleted.
                os.close(os.open(f"{d}/{name}/deleted-f", os.O_CREAT | os.O_WRONLY, 0o2771))
                os.mkdir(f"{d}/{name}/deleted-d", 0o2771)
                os.symlink("x", f"{d}/{name}/deleted-l")
                os.mkdir(f"{d}/{name}/deleted-d/sub")
                os.chmod(f"{d}/{name}/f640-0", 0o2755)
                os.rename(f"{d}/{name}/d640-0", f"{d}/{name}/deleted-d/moved")
                return 0

            equal(f"{name}: all is made", child(make, USER), 0)

    def facts(d):
        got = {}
        for at, dirs, files in os.walk(d):
            for name in dirs + files:
                path = os.path.join(at, name)
                st = os.lstat(path)
                acls = {n: os.getxattr(path, n, follow_symlinks=False).hex() for n in os.listxattr(path, follow_symlinks=False) if "acl" in n}
                got[os.path.relpath(path, d)] = (f"{st.st_mode:o}", st.st_uid, st.st_gid, acls)
        return got

    ours, theirs = facts(union), facts(plain)
    equal("owner, group, mode and ACLs of what is made", {n: (ours.get(n), f) for n, f in theirs.items() if ours.get(n) != f}, {})


PARTS = ("renames", "rights", "times", "paths", "sharing", "making")
what, *args = sys.argv[1:]
os.umask(0o22)
if what == "prepare":
    for part in PARTS:
        os.mkdir(f"{args[0]}/{part}")
        globals()[f"prepare_{part}"](f"{args[0]}/{part}")
else:
    union, plain, *parts = args
    for part in parts or PARTS:
        globals()[f"run_{part}"](f"{union}/{part}", f"{plain}/{part}")
PY

mkdir lower ufs
check "the lower is laid out" /usr/bin/python3 "$RUN" prepare lower
tree lower exact >lower.before

# What both trees show but for times of now: names, contents, modes, owners, counts of links.
shown() { tree "$1" | sed -E 's/ m-?[0-9]+//g; s/ s[0-9]+( |$)/ /' | grep -v "^b'/times/\|^b'\.'"; }

for format in overlay oci unionfs unionfs-fuse; do
	rm -rf plain && mkdir plain "upper-$format" && /usr/bin/python3 "$RUN" prepare plain
	NO_REDIRECT=
	[ $format = overlay ] || export NO_REDIRECT=yes
	options=cow,allow_other,suid,dev,whiteout=$format
	echo "# $format"
	check "$format: mounts" union -o "$options" "upper-$format=RW:lower=RO" ufs || continue
	# Times do not hang on the marks.
	timeout -k 5 60 /usr/bin/python3 "$RUN" run ufs plain $([ $format = overlay ] || echo renames rights paths sharing making) || fail "$format: the calls did not come to their end: $?"
	# Where a directory could not be renamed the trees differ by that.
	if [ $format = overlay ]; then
		shown plain >plain.tree
		shown ufs >ufs.tree
		same "$format: the same tree in the end" plain.tree ufs.tree
	else
		shown ufs >plain.tree
	fi
	echo 2 >/proc/sys/vm/drop_caches
	shown ufs >ufs.tree
	same "$format: after forget" plain.tree ufs.tree
	check "$format: unmounts" unmount ufs
	no_daemon_left
	check "$format: mounts again" union -o "$options" "upper-$format=RW:lower=RO" ufs || continue
	shown ufs >ufs.tree
	same "$format: after a remount" plain.tree ufs.tree
	[ $format != overlay ] || equal "$format: times after a remount" "$(cd ufs/times && stat -c "%n %.9Y" [lns]*[0-9])" "$(cd plain/times && stat -c "%n %.9Y" [lns]*[0-9])"
	check "$format: unmounts" unmount ufs
	no_daemon_left
done

# File handles outlive the union: lower, copied up and new files and directories, in every format.
for format in overlay oci unionfs unionfs-fuse; do
	rm -rf upper && mkdir upper
	check "$format: mounts" union -o "cow,allow_other,whiteout=$format" upper=RW:lower=RO ufs
	cat >handles.py <<-'PY'
		from lib import *
		libc = ctypes.CDLL(None, use_errno=True)
		names = ["sharing/maps", "sharing/direct", "new", "newdir/deep", "sharing", "times/link0"]
		if sys.argv[1] == "take":
		    append_file("ufs/sharing/direct", b"!")
		    write_file("ufs/new", b"new")
		    os.mkdir("ufs/newdir"), write_file("ufs/newdir/deep", b"deep")
		    for n, name in enumerate(names):
		        handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128)), ctypes.c_int()
		        assert libc.name_to_handle_at(AT_FDCWD, os.fsencode(f"ufs/{name}"), handle, ctypes.byref(mount), 0) == 0
		        write_file(f"handle{n}", handle.raw)
		else:
		    at = os.open("ufs", os.O_RDONLY)
		    for n, name in enumerate(names):
		        fd = libc.open_by_handle_at(at, ctypes.create_string_buffer(read_file(f"handle{n}")), os.O_PATH)
		        st = os.stat(f"ufs/{name}", follow_symlinks=False)
		        equal(f"{name} by a handle from before the remount", fd >= 0 and os.fstat(fd)[:3], st[:3])
	PY
	check "$format: handles are taken" /usr/bin/python3 handles.py take
	unmount ufs
	no_daemon_left
	check "$format: mounts again" union -o "cow,allow_other,whiteout=$format" upper=RW:lower=RO ufs
	/usr/bin/python3 handles.py use || fail "$format: handles could not be used"
	unmount ufs
	no_daemon_left
done
# Access times follow the mount's words; those of a lower never move.
rm -rf plain
for word in relatime noatime nodiratime; do
	rm -rf upper atime-lower && mkdir -p upper/d plain atime-lower
	touch upper/d/x
	head -c 200000 /dev/zero | tee upper/large | tee atime-lower/lower | head -c 100 >upper/small
	touch -d 2001-01-01 upper/* atime-lower/lower && touch -a -d 2000-01-01 upper/* atime-lower/lower
	check "$word: mounts" union -o "cow,allow_other,$word" upper=RW:atime-lower=RO ufs
	cat ufs/small ufs/large ufs/lower >/dev/null && ls ufs/d >/dev/null
	moved=$(for n in small large d lower; do [ "$(stat -c %X ufs/$n)" = "$(date -d 2000-01-01 +%s)" ] || echo -n "$n "; done)
	case $word in relatime) want="small large d " ;; noatime) want= ;; nodiratime) want="small large " ;; esac
	equal "$word: whose access times reading moves" "$moved" "$want"
	unmount ufs
	no_daemon_left
	equal "$word: a lower's never" "$(stat -c %X atime-lower/lower)" "$(date -d 2000-01-01 +%s)"
done

# Old descriptors and maps of every kind of file see what is written after the copy-up: with `coherent`, not with overlayfs.
cat >coherent.py <<'PY'
import mmap, os, subprocess, sys
top, stale = sys.argv[1], []
for name in ("text", "large-text", "binary", "program", "bare"):
    path = f"{top}/{name}"
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    view = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    private = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
    view[100:104], private[100:104], os.pread(fd, 4, 100)
    if name == "bare":
        os.chmod(path, 0o640)
    subprocess.run(["/usr/bin/python3", "-c", """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b"CHANGED", 100)
os.pwrite(fd, b"GROWN", os.fstat(fd).st_size)""", path], check=True)
    if os.pread(fd, 7, 100) != b"CHANGED":
        stale.append(f"{name}: a descriptor")
    if os.fstat(fd).st_size != size + 5 or os.pread(fd, 10, size) != b"GROWN":
        stale.append(f"{name}: its size")
    if view[100:107] != b"CHANGED":
        stale.append(f"{name}: a shared map")
    if private[100:107] != b"CHANGED":
        stale.append(f"{name}: an untouched private map")
print("\n".join(stale))
PY
mkdir coherent-lower
/usr/bin/python3 - <<'PY'
for name, data in (("text", b"text\n" * 1000), ("large-text", b"text\n" * 100000), ("binary", bytes(300000)), ("program", bytes(300000)), ("bare", bytes(300000))):
    open(f"coherent-lower/{name}", "wb").write(data)
PY
chmod 755 coherent-lower/program
for kind in plain overlayfs coherent; do
	rm -rf upper work && mkdir upper work
	case $kind in
	plain) rm -rf ufs/* && mount --bind upper ufs && cp coherent-lower/* ufs ;;
	overlayfs) mount -t overlay none -o lowerdir=coherent-lower,upperdir=upper,workdir=work ufs ;;
	coherent) check "coherent: mounts" union -o cow,allow_other,coherent upper=RW:coherent-lower=RO ufs ;;
	esac
	/usr/bin/python3 coherent.py ufs >stale
	case $kind in
	overlayfs) check "overlayfs shows old data through $(wc -l <stale) of 20 old views" [ -s stale ] ;;
	*) equal "$kind: nothing shows old data" "$(cat stale)" "" ;;
	esac
	unmount ufs
	no_daemon_left
done
tree lower exact | sed -E 's/ a-?[0-9]+( |$)/\1/' >lower.after
sed -i -E 's/ a-?[0-9]+( |$)/\1/' lower.before
same "the lower is untouched" lower.before lower.after
finish
