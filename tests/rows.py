"""What makes a union better than its peers, line by line: rows of the project's comparison that no other test holds whole.

    rows.py prepare LOWER               builds the lower branch: a directory for each phase, in it one for each case
    rows.py do TOP LOWER PHASE          the changes, with what must hold while they are made
    rows.py show TOP LOWER PHASE...     what must be seen from then on: at once, after forget, after a remount

A case is `do_NAME(d, low)` and `show_NAME(d, low)`; `lower_NAME` builds what they find. `low` is the same directory in the lower.
Phase `second` is done after a remount.
"""

import hashlib
import json
import shutil
import subprocess

from lib import *

PHASES = ("first", "second")
USER = 47113
FORMAT = os.environ.get("FORMAT", "overlay")
digest = lambda path: hashlib.sha256(read_file(path)).hexdigest()


def in_processes(count, call):
    """`call(n)` in each of so many processes, which begin together; how many failed."""
    read, write = os.pipe()
    pids = []
    for n in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(write)
                os.read(read, 1)
                call(n)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(read)
    os.close(write)
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)


def as_user(call):
    """`call` by an ordinary user; its value, a number."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([]), os.setresgid(USER, USER, USER), os.setresuid(USER, USER, USER)
            os.write(write, str(call()).encode())
        finally:
            os._exit(0)
    os.close(write)
    answer = os.read(read, 100)
    os.close(read)
    os.waitpid(pid, 0)
    return int(answer or -1)


def names(directory):
    return sorted(os.listdir(directory))


# ---- row 1: concurrent copy-ups -------------------------------------------------------------------------------------------

TOGETHER, SIZE = 16, 9 << 20


def lower_together(d):
    for n in range(TOGETHER):
        write_file(f"{d}/f{n}", pattern(f"together{n}", SIZE))
    write_file(f"{d}/one", pattern("one", SIZE))


def do_together(d, low):
    def write(n):
        for name in (f"f{n}", "one"):
            fd = os.open(f"{d}/{name}", os.O_WRONLY)
            os.pwrite(fd, b"worker %02d" % n, n * 500_000)
            os.close(fd)

    equal("sixteen processes copy up sixteen files at once, and one", in_processes(TOGETHER, write), 0)


def wanted_together(low):
    """Digests of what must be there, by name: taken once, from the lower."""
    kept = os.path.join(os.environ["T"], "together")
    if not os.path.exists(kept):
        want = {}
        for name, workers in [(f"f{n}", [n]) for n in range(TOGETHER)] + [("one", range(TOGETHER))]:
            data = bytearray(read_file(f"{low}/{name}"))
            for n in workers:
                data[n * 500_000 : n * 500_000 + 9] = b"worker %02d" % n
            want[name] = hashlib.sha256(data).hexdigest()
        write_file(kept, json.dumps(want).encode())
    return json.loads(read_file(kept))


def show_together(d, low):
    equal("sixteen files, and one, copied up at once: each writer's bytes", {n: digest(f"{d}/{n}") for n in names(d)}, wanted_together(low))


# ---- row 2: the lower is never written ------------------------------------------------------------------------------------
# (The lower is compared by the shell, exactly, after all of it.)

VICTIMS = ("trunc", "badmode", "exchange", "whiteout", "handle", "map", "copy", "splice", "proc", "passed", "flags")


def lower_victims(d):
    for name in VICTIMS:
        write_file(f"{d}/{name}", pattern(name, 5_000 if name == "proc" else 100_000))
    shutil.copy("/bin/true", f"{d}/program")
    os.chmod(f"{d}/program", 0o755)


def do_victims(d, low):
    p = lambda name: f"{d}/{name}"
    os.close(os.open(p("trunc"), os.O_RDONLY | os.O_TRUNC))
    fd = os.open(p("badmode"), os.O_ACCMODE)
    attempt(os.write, fd, b"JUNK")
    attempt(os.ftruncate, fd, 3)
    os.close(fd)
    write_file(p("fresh"), b"fresh")
    works("EXCHANGE of a lower and a new file", renameat2, p("exchange"), p("fresh"), RENAME_EXCHANGE)
    append_file(p("fresh"), b"JUNK")
    attempt(renameat2, p("whiteout"), p("moved"), RENAME_WHITEOUT)
    libc = ctypes.CDLL(None, use_errno=True)
    handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128)), ctypes.c_int()
    at = os.open(d, os.O_RDONLY)
    equal("name_to_handle_at", libc.name_to_handle_at(at, b"handle", handle, ctypes.byref(mount), 0), 0)
    fd = libc.open_by_handle_at(at, handle, os.O_RDWR)
    os.write(fd, b"BY HANDLE")
    os.close(fd), os.close(at)
    fd = os.open(p("map"), os.O_RDWR)
    with mmap.mmap(fd, 100_000) as view:
        view[0:3] = b"MAP"
    os.close(fd)
    source, target = os.open(p("fresh"), os.O_RDONLY), os.open(p("copy"), os.O_WRONLY)
    os.copy_file_range(source, target, 1000, 0, 0)
    os.close(target)
    read, write = os.pipe()
    os.write(write, b"SPLICED")
    target = os.open(p("splice"), os.O_WRONLY)
    os.splice(read, target, 7)
    for fd in (source, target, read, write):
        os.close(fd)
    old = os.open(p("proc"), os.O_RDONLY)
    fd = os.open(f"/proc/self/fd/{old}", os.O_RDWR)
    os.write(fd, b"BY PROC")
    os.close(fd), os.close(old)
    # The kernel may read a large lower file by itself; then this descriptor leads to what is no longer the file (README, Limits).
    old = os.open(p("passed"), os.O_RDONLY)
    os.close(os.open(p("passed"), os.O_RDWR))
    check("opened again by /proc/self/fd for writing: works, or ESTALE", attempt(os.open, f"/proc/self/fd/{old}", os.O_RDWR) in (0, errno.ESTALE))
    os.close(old)
    fd = os.open(p("flags"), os.O_RDONLY)
    set_flags(fd, get_flags(fd) | FS_NODUMP)
    os.close(fd)
    # A program that somebody reads while another writes it: the kernel reads the lower's by itself.
    old = os.open(p("program"), os.O_RDONLY)
    first = os.pread(old, 4, 0)
    new = works("a program that is read is opened for writing", os.open, p("program"), os.O_RDWR)
    works("and written", os.pwrite, new, b"WRITTEN", 0)
    check("the reader sees the old or the new content, no error", os.pread(old, 4, 0) in (first, b"WRIT"))
    os.close(new), os.close(old)


def show_victims(d, low):
    got = {n: read_file(f"{d}/{n}")[:9] for n in ("trunc", "handle", "map", "copy", "splice", "proc", "program")}
    start = lambda n: read_file(f"{low}/{n}")[:9]
    want = {"trunc": b"", "handle": b"BY HANDLE", "map": b"MAP" + start("map")[3:], "copy": start("exchange"),
            "splice": b"SPLICED" + start("splice")[7:], "proc": b"BY PROC" + start("proc")[7:], "program": b"WRITTEN" + start("program")[7:]}
    equal("what was written in unusual ways is in the union", got, want)
    equal("EXCHANGE swapped both", (read_file(f"{d}/exchange"), read_file(f"{d}/fresh")), (b"fresh", read_file(f"{low}/exchange") + b"JUNK"))
    equal("no whiteout was made", (read_file(f"{d}/whiteout") == read_file(f"{low}/whiteout"), os.path.exists(f"{d}/moved")), (True, False))


# ---- row 5: directory renames and the deploy swap -----------------------------------------------------------------------


def lower_swap(d):
    for top in ("cur", "merged", "deep/er/est", "emptied"):
        os.makedirs(f"{d}/{top}/sub")
        for name in ("a", "sub/b"):
            write_file(f"{d}/{top}/{name}", f"lower {top}/{name}".encode())


def do_swap(d, low):
    mv = lambda old, new: works(f"mv {old} {new}", subprocess.run, ["mv", "-T", f"{d}/{old}", f"{d}/{new}"], check=True)
    os.makedirs(f"{d}/new/sub")
    write_file(f"{d}/new/a", b"new a")
    write_file(f"{d}/new/c", b"new c")
    mv("cur", "old")
    mv("new", "cur")
    write_file(f"{d}/merged/upper", b"upper")
    os.unlink(f"{d}/merged/a")
    mv("merged", "deep/er/merged")
    mv("deep", "deeper")
    shutil.rmtree(f"{d}/emptied")
    os.mkdir(f"{d}/emptied")
    write_file(f"{d}/emptied/only", b"only")


def show_swap(d, low):
    got = {os.path.relpath(os.path.join(at, f), d): read_file(os.path.join(at, f)) for at, _, fs in os.walk(d) for f in fs}
    want = {"cur/a": b"new a", "cur/c": b"new c", "old/a": b"lower cur/a", "old/sub/b": b"lower cur/sub/b",
            "deeper/er/merged/upper": b"upper", "deeper/er/merged/sub/b": b"lower merged/sub/b",
            "deeper/er/est/a": b"lower deep/er/est/a", "deeper/er/est/sub/b": b"lower deep/er/est/sub/b", "emptied/only": b"only"}
    equal("the deploy swap and directories moved at any depth: exactly what a plain filesystem has", got, want)
    equal("an empty directory moved along", names(f"{d}/cur/sub"), [])


# ---- row 6: marks can be neither seen nor made ------------------------------------------------------------------------

MARKS = (".unionfs", ".unionfs-fuse", ".unionfs/x_HIDDEN~", ".unionfs-fuse/x_HIDDEN~", ".wh.kept", ".wh..wh..opq", ".cowfs", ".cowfs/stage", ".cowfs/index")


def lower_private(d):
    for name in ("kept", "gone"):
        write_file(f"{d}/{name}", name.encode())
    os.mkdir(f"{d}/opaque")
    write_file(f"{d}/opaque/old", b"old")


def do_private(d, low):
    os.unlink(f"{d}/gone")
    shutil.rmtree(f"{d}/opaque")
    os.mkdir(f"{d}/opaque")


def show_private(d, low):
    top = os.path.dirname(os.path.dirname(d))
    wrong = []
    for place in [f"{top}/{m}" for m in MARKS] + [f"{d}/{m}" for m in MARKS if m.startswith(".wh.")] + [f"{d}/opaque/.wh..wh..opq"]:
        calls = {
            "stat": lambda: os.lstat(place),
            "open": lambda: os.open(place, os.O_RDONLY),
            "create": lambda: os.open(place, os.O_CREAT | os.O_WRONLY),
            "mkdir": lambda: os.mkdir(place),
            "mknod": lambda: os.mknod(place, stat.S_IFCHR | 0o600, 0),
            "link": lambda: os.link(f"{d}/kept", place),
            "rename to": lambda: os.rename(f"{d}/kept", place),
            "rename from": lambda: os.rename(place, f"{d}/stolen"),
            "unlink": lambda: os.unlink(place),
            "rmdir": lambda: os.rmdir(place),
        }
        for what, call in calls.items():
            if (code := attempt(call)) not in (errno.ENOENT, errno.EPERM):
                wrong.append((place, what, errno.errorcode.get(code, code)))
    for space in ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "trusted.cowfs."):
        for path in (f"{d}/kept", f"{d}/opaque", d):
            name = space + "opaque"
            codes = [attempt(os.setxattr, path, name, b"y"), attempt(os.removexattr, path, name), attempt(os.getxattr, path, name)]
            if codes != [errno.EPERM, errno.EPERM, errno.ENODATA] or [n for n in os.listxattr(path) if n.startswith(space)]:
                wrong.append((path, name, codes))
    for n in ("kept", "opaque", "gone", "made"):
        os.path.exists(f"{d}/{n}") or os.mknod(f"{d}/{n}", stat.S_IFCHR | 0o600, os.makedev(0, 0)) or os.unlink(f"{d}/{n}")
    equal("marks can be neither seen nor reached nor made, by root", wrong, [])
    equal("and nothing of it has changed what is shown", (names(d), names(f"{d}/opaque")), (["kept", "opaque"], []))


# ---- row 7: a user and the ioctls ---------------------------------------------------------------------------------------


def lower_control(d):
    write_file(f"{d}/f", b"control")
    write_file(f"{d}/secret", b"secret", 0o600)


def do_control(d, low):
    pass


def show_control(d, low):
    def attack():
        """Every ioctl of unionfs-fuse's letter, FUSE's own, and random ones: none may work."""
        libc, worked = ctypes.CDLL(None, use_errno=True), 0
        for path in (d, f"{d}/f"):
            fd = os.open(path, os.O_RDONLY)
            for letter in (b"E"[0], 229, b"f"[0] + 1, b"X"[0] + 1, 0x94):
                for number in range(64):
                    for code in (letter << 8 | number, 1 << 30 | 4 << 16 | letter << 8 | number, 1 << 30 | 1024 << 16 | letter << 8 | number):
                        argument = ctypes.create_string_buffer(os.fsencode(f"{d}/secret"), 4096)
                        worked += libc.ioctl(fd, code, argument) >= 0
            for name in ("user.mergerfs.cmd.gc", "user.cowfs.refresh", "trusted.cowfs.x"):
                attempt(os.setxattr, fd, name, b"/etc/passwd")
            os.close(fd)
        return worked

    equal("no ioctl works for an ordinary user", as_user(attack), 0)
    fd = os.open(f"{d}/f", os.O_RDONLY)
    fails("an ioctl that is none", errno.ENOTTY, fcntl.ioctl, fd, 0x4004_4500, bytes(8))
    os.close(fd)
    equal("nothing was opened or cut by name", read_file(f"{d}/secret"), b"secret")


# ---- row 8: odd input -----------------------------------------------------------------------------------------------------

MOMENTS = (-(1 << 31), -1, 0, 16_725_225_600, (1 << 34) - (1 << 31) - 1, 1 << 40)


def lower_odd(d):
    os.mkdir(os.fsencode(d) + b"/\xff\xfe\x80")
    write_file(os.fsencode(d) + b"/\xff\xfe\x80/" + b"\xc3" * 255, b"bytes")
    os.mknod(f"{d}/socket", stat.S_IFSOCK | 0o600)
    for n, moment in enumerate(MOMENTS):
        write_file(f"{d}/t{n}", b"t")
        os.utime(f"{d}/t{n}", (moment, moment))


def do_odd(d, low):
    odd = os.fsencode(d) + b"/\xff\xfe\x80/"
    append_file(odd + b"\xc3" * 255, b"!")
    os.rename(odd + b"\xc3" * 255, odd + b"\xa0" * 255)
    os.chmod(f"{d}/socket", 0o644)
    plain = os.path.join(os.environ["T"], "plain-time")
    write_file(plain, b"")
    for n, moment in enumerate(MOMENTS):
        os.chmod(f"{d}/t{n}", 0o600)
        for path in (f"{d}/s{n}", plain):
            write_file(path, b"s")
            os.utime(path, (moment, moment))
        equal(f"a file set to {moment} s shows what one on the branch's filesystem shows", os.stat(f"{d}/s{n}").st_mtime_ns, os.stat(plain).st_mtime_ns)
    path = "./" * ((4095 - len(d) - 1) // 2) + "t0"
    equal("a path of 4095 bytes", os.stat(f"{d}/{path}"[:4096] if len(f"{d}/{path}") < 4096 else f"{d}/{path[2:]}").st_size, 1)
    fails("and one more", errno.ENAMETOOLONG, os.stat, f"{d}/" + "./" * 2048 + "t0")


def show_odd(d, low):
    odd = os.fsencode(d) + b"/\xff\xfe\x80/"
    equal("names of any bytes, 255 long", (os.listdir(odd), read_file(odd + b"\xa0" * 255)), ([b"\xa0" * 255], b"bytes!"))
    equal("a socket that was copied up", stat.filemode(os.lstat(f"{d}/socket").st_mode), "srw-r--r--")
    got = [os.stat(f"{d}/t{n}").st_mtime_ns for n in range(len(MOMENTS))]
    equal("times from 1901 on are the lower's", got, [os.stat(f"{low}/t{n}").st_mtime_ns for n in range(len(MOMENTS))])


# ---- rows 9 and 19: numbers and links -----------------------------------------------------------------------------------


def lower_numbers(d):
    os.makedirs(f"{d}/dir/sub")
    for name in ("appended", "touched", "untouched", "dir/f", "dir/sub/g"):
        write_file(f"{d}/{name}", name.encode())
    for name in ("h", "k", "m"):
        write_file(f"{d}/{name}1", b"linked")
        os.link(f"{d}/{name}1", f"{d}/dir/{name}2")
    os.link(f"{d}/m1", f"{d}/dir/sub/m3")
    os.symlink("untouched", f"{d}/link")


def do_numbers(d, low):
    append_file(f"{d}/appended", b"!")
    os.utime(f"{d}/touched")
    append_file(f"{d}/dir/sub/g", b"!")
    append_file(f"{d}/h1", b"+h1")
    ctime = os.stat(f"{d}/dir/m2").st_ctime_ns
    time.sleep(0.01)
    os.unlink(f"{d}/m1")
    check("unlink of one name moves the others' ctime", os.stat(f"{d}/dir/m2").st_ctime_ns > ctime)
    os.link(f"{d}/dir/k2", f"{d}/k3")
    equal("a new link's number is right at once", os.stat(f"{d}/k3").st_ino, os.stat(f"{d}/k1").st_ino)
    ctime = os.stat(f"{d}/k1").st_ctime_ns
    time.sleep(0.01)
    os.rename(f"{d}/k3", f"{d}/k4")
    check("rename of one name moves the others' ctime", os.stat(f"{d}/k1").st_ctime_ns > ctime)


def show_numbers(d, low):
    plain = ("appended", "touched", "untouched", "dir", "dir/sub", "dir/f", "dir/sub/g", "h1", "dir/h2", "k1", "dir/k2", "dir/m2", "dir/sub/m3", "link")
    number = lambda top: {n: os.lstat(f"{top}/{n}").st_ino for n in plain}
    equal("st_ino is the branch's", number(d), number(low))
    found = subprocess.run(["find", d, "-type", "f", "-links", "+1", "-printf", "%i %n %P\n"], capture_output=True, text=True).stdout
    i = {n: os.stat(f"{low}/{n}").st_ino for n in ("h1", "k1", "dir/m2")}
    want = [f"{i['h1']} 2 h1", f"{i['h1']} 2 dir/h2", f"{i['dir/m2']} 2 dir/m2", f"{i['dir/m2']} 2 dir/sub/m3"]
    want += [f"{i['k1']} 3 {n}" for n in ("k1", "dir/k2", "k4")]
    equal("find -links +1 shows the pairs", sorted(found.splitlines()), sorted(want))
    # What is written by one name is read by the others, now and in every later session.
    for one, others in (("h1", ["dir/h2"]), ("dir/m2", ["dir/sub/m3"]), ("k4", ["k1", "dir/k2"])):
        append_file(f"{d}/{one}", b".")
        data = read_file(f"{d}/{one}")
        check(f"{one} is written to, and read by its other names", data.endswith(b".") and all(read_file(f"{d}/{o}") == data for o in others))
    tar = subprocess.run(["tar", "-c", "--to-stdout", "-C", d, "."], capture_output=True)
    check("tar reads all of it", tar.returncode == 0, tar.stderr)


# ---- row 10: fidelity ---------------------------------------------------------------------------------------------------

CAPS = bytes.fromhex("0000000200040000000000000000000000000000")
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in
    ((1, 6, 0xFFFFFFFF), (2, 7, USER), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)))


def lower_fidelity(d):
    for name in ("touched", "mode"):
        with open(f"{d}/{name}", "wb") as file:
            file.truncate(16 << 20)
            os.pwrite(file.fileno(), pattern(name, 100_000), 8 << 20)
        os.chown(f"{d}/{name}", USER, 12)
        os.setxattr(f"{d}/{name}", "system.posix_acl_access", ACL)
        os.setxattr(f"{d}/{name}", "security.capability", CAPS)
        os.setxattr(f"{d}/{name}", "trusted.t", b"t")
        os.setxattr(f"{d}/{name}", "user.empty", b"")
        os.setxattr(f"{d}/{name}", "user.large", b"L" * 2000)
        os.chmod(f"{d}/{name}", 0o6771)
        os.utime(f"{d}/{name}", ns=(-5_000_000_001, -987654321987654321))
    os.mkdir(f"{d}/closed")
    os.mkdir(f"{d}/closed/sub")
    write_file(f"{d}/closed/f", b"f")
    for n, path in enumerate((f"{d}/closed/sub", f"{d}/closed")):
        os.setxattr(path, "system.posix_acl_default", ACL)
        os.setxattr(path, "user.dir", b"d")
        os.chown(path, USER, 7)
        os.chmod(path, (0o2750, 0o700)[n])
        os.utime(path, ns=(7, 987654321987654321))


def facts(path):
    st = os.stat(path)
    attributes = {n: os.getxattr(path, n) for n in os.listxattr(path)}
    size = None if stat.S_ISDIR(st.st_mode) else (st.st_size, st.st_blocks, digest(path))
    return [oct(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns, st.st_ino, attributes, size]


def do_fidelity(d, low):
    # A copy of all, data included; by an attribute that comes and goes.
    fd = os.open(f"{d}/touched", os.O_RDONLY)
    os.setxattr(fd, "user.x", b"x"), os.removexattr(fd, "user.x")
    os.close(fd)
    before = os.stat(f"{d}/mode").st_mtime_ns
    subprocess.run(["touch", "-c", "-a", f"{d}/mode"], check=True)
    equal("touch -a leaves the time of modification", os.stat(f"{d}/mode").st_mtime_ns, before)
    write_file(f"{d}/closed/sub/new", b"new")
    os.utime(f"{d}/closed/sub", ns=(7, 987654321987654321))
    append_file(f"{d}/closed/f", b"!")


def show_fidelity(d, low):
    for name in ("touched", "mode", "closed/sub", "closed"):
        got, want = facts(f"{d}/{name}"), facts(f"{low}/{name}")
        equal(f"{name}: owner, mode, times, ACLs, capabilities, attributes, holes are the lower's", got, want)


# ---- row 15: only what is needed is copied ------------------------------------------------------------------------------
# (Times and room are the shell's.)


def lower_sparing(d):
    for name in ("otrunc", "truncate", "over", "gone"):
        write_file(f"{d}/{name}", bytes(4 << 20))


def written():
    """Bytes that the daemon has dirtied so far."""
    with open(f"/proc/{os.environ['DAEMON']}/io") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(("write_bytes", "wchar")))


def do_sparing(d, low):
    before = written()
    os.close(os.open(f"{d}/otrunc", os.O_WRONLY | os.O_TRUNC))
    os.truncate(f"{d}/truncate", 0)
    write_file(f"{d}/new", b"new")
    os.rename(f"{d}/new", f"{d}/over")
    os.unlink(f"{d}/gone")
    check("O_TRUNC, truncate, rename over and unlink of 4 MiB each copy none of them", written() - before < 1 << 20, written() - before)


def show_sparing(d, low):
    sizes = {n: os.stat(f"{d}/{n}").st_size for n in names(d)}
    equal("and leave what they should", sizes, {"otrunc": 0, "truncate": 0, "over": 3})


# ---- row 20, and conformance: descriptors, again and again --------------------------------------------------------------


def lower_descriptors(d):
    for n in range(8):
        write_file(f"{d}/f{n}", pattern(f"f{n}", 5000))
        write_file(f"{d}/gone{n}", pattern(f"gone{n}", 5000))


def do_descriptors(d, low):
    pass


def show_descriptors(d, low):
    """Each time on files that are still in the lower, and on those that earlier turns have copied up."""
    turn = len([n for n in names(d) if n.startswith("turn")])
    write_file(f"{d}/turn{turn}", b"")
    for name in {f"f{turn}", "f0"}:
        old = os.open(f"{d}/{name}", os.O_RDONLY)
        os.pread(old, 10, 0)
        size = os.fstat(old).st_size
        new = os.open(f"{d}/{name}", os.O_WRONLY | os.O_APPEND)
        os.write(new, b"grown")
        os.close(new)
        equal("a read-only descriptor from before the write sees data and size", (os.pread(old, 9, size), os.fstat(old).st_size), (b"grown", size + 5))
        os.close(old)
    fd = os.open(f"{d}/gone{turn}", os.O_RDWR)
    os.unlink(f"{d}/gone{turn}")
    works("an unlinked descriptor: ftruncate", os.ftruncate, fd, 100)
    works("an unlinked descriptor: fchmod", os.fchmod, fd, 0o600)
    works("an unlinked descriptor: fsetxattr", os.setxattr, fd, "user.a", b"a")
    equal("an unlinked descriptor: fstat", (os.fstat(fd).st_nlink, os.fstat(fd).st_size), (0, 100))
    equal("no name stands for it", [n for n in os.listdir(d) if n.startswith(".")], [])
    os.close(fd)
    # A number that the branch uses again.
    for n in range(20):
        path = f"{d}/reused"
        os.mkdir(path) if n % 2 else write_file(path, b"")
        held = os.open(path, os.O_RDONLY)
        os.rmdir(path) if n % 2 else os.unlink(path)
        write_file(path, b"") if n % 2 else os.mkdir(path)
        kinds = stat.S_ISDIR(os.lstat(path).st_mode), stat.S_ISDIR(os.fstat(held).st_mode)
        os.close(held)
        os.unlink(path) if n % 2 else os.rmdir(path)
        if kinds != (n % 2 == 0, n % 2 == 1):
            check("a name is never a file and a directory at once", False, (n, kinds))


# ---- row 22: any name, any path -------------------------------------------------------------------------------------------

DEEP = ["deep" + "d" * 34] * 100


def lower_reach(d):
    for size in range(240, 256):
        write_file(f"{d}/{'n' * size}", b"long")
        os.mkdir(f"{d}/{'D' * size}")
    write_file(f"{d}/kept", b"kept")
    fd = path_below(d, DEEP)
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def do_reach(d, low):
    for size in range(240, 256):
        os.unlink(f"{d}/{'n' * size}")
        os.rmdir(f"{d}/{'D' * size}")
    at = os.getcwd()
    os.chdir(d)
    deep = "/".join(DEEP)
    append_file(f"{deep}/leaf", b"deep")
    os.rename(f"{deep}/leaf", f"{deep}/renamed")
    os.mkdir(f"{deep}/made")
    os.chdir(at)


def show_reach(d, low):
    equal("names of 240 to 255 bytes are deleted", names(d), [DEEP[0], "kept"])
    at = os.getcwd()
    os.chdir(d)
    deep = "/".join(DEEP)
    equal(f"work at depth 100, {len(deep)} bytes of path", (names(deep), read_file(f"{deep}/renamed")), (["made", "renamed"], b"deep"))
    os.chdir(at)
    for size in (256, 1000):
        fails(f"a name of {size} bytes", errno.ENAMETOOLONG, os.mkdir, f"{d}/{'x' * size}")
    equal("statfs says 255", os.statvfs(d).f_namemax, 255)


# ---- running ----------------------------------------------------------------------------------------------------------------

# Large; its second phase would show nothing that the first does not.
ONCE = ("together",)
CASES = [name.removeprefix("lower_") for name in list(globals()) if name.startswith("lower_")]


def cases(phase):
    return [case for case in CASES if phase == "first" or case not in ONCE]


def main():
    os.umask(0o022)
    what, top, *rest = sys.argv[1:]
    if what == "prepare":
        for phase in PHASES:
            os.mkdir(f"{top}/{phase}")
            for case in cases(phase):
                os.mkdir(f"{top}/{phase}/{case}")
                globals()[f"lower_{case}"](f"{top}/{phase}/{case}")
        return
    lower, *phases = rest
    for phase in phases:
        for case in cases(phase):
            began = time.monotonic()
            try:
                globals()[f"{what}_{case}"](os.path.abspath(f"{top}/{phase}/{case}"), os.path.abspath(f"{lower}/{phase}/{case}"))
            except Exception as error:
                import traceback

                line = traceback.extract_tb(error.__traceback__)[1].lineno
                check(f"{what} {case} runs to its end", False, f"line {line}: {error!r}")
            if time.monotonic() - began > 1:
                print(f"# {what} {case}: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
