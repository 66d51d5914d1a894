"""What a filesystem must do, case by case, on names that come from a lower branch and on new ones.

    semantics.py prepare LOWER        builds the lower branch: one directory for each case
    semantics.py run TOP [CASE...]    runs the cases in a union over it (or on a plain copy: all but `inodes` hold there too)
    semantics.py list                 names of the cases

A case is a function of its own directory; `lower_NAME` builds what it finds there. Cases marked `as_root` need real root.
"""

import json
import random
import resource
import shutil
import signal
import socket
import subprocess

from lib import *

CASES = {}
USER = 47113
XATTR_CREATE, XATTR_REPLACE = 1, 2
NATIVE = os.environ.get("STANDIN") == "native"
# Mounted with `coherent`.
COHERENT = bool(os.environ.get("COHERENT"))
# The format of marks has none for a renamed directory of a lower branch: rename(2) answers EXDEV, and mv copies.
NO_REDIRECT = bool(os.environ.get("NO_REDIRECT"))


def case(function=None, *, as_root=False):
    """Registers a case."""

    def register(function):
        CASES[function.__name__] = (function, as_root)
        return function

    return register(function) if function else register


def as_user(call, uid=USER, gid=USER):
    """Runs `call` in a child with another identity; its value (an int or string), or OSError as here."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            answer = ["value", call()]
        except OSError as error:
            answer = ["errno", error.errno]
        except BaseException as error:
            answer = ["value", repr(error)]
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    answer = b""
    while block := os.read(read, 65536):
        answer += block
    os.close(read)
    os.waitpid(pid, 0)
    kind, value = json.loads(answer)
    if kind == "errno":
        raise OSError(value, os.strerror(value))
    return value


def move_directory(old, new):
    """Renames a directory of a lower branch as mv(1) does."""
    if NO_REDIRECT:
        fails(f"rename of {os.path.basename(old)} without redirects", errno.EXDEV, os.rename, old, new)
        shutil.copytree(old, new, symlinks=True)
        shutil.rmtree(old)
    else:
        os.rename(old, new)


def names(directory):
    return sorted(os.listdir(directory))


# ---- open files ------------------------------------------------------------------------------------------------------


def lower_unlinked(d):
    for name in ("low", "low2", "low3", "target"):
        write_file(f"{d}/{name}", b"lower " + name.encode())
    write_file(f"{d}/big", pattern("big", 300000))
    os.mkdir(f"{d}/dir")
    write_file(f"{d}/dir/f", b"f")


@case
def unlinked(d):
    write_file(f"{d}/new", b"lower new")
    for name in ("low", "new"):
        fd = os.open(f"{d}/{name}", os.O_RDWR)
        os.unlink(f"{d}/{name}")
        equal(f"{name}: nlink is 0", os.fstat(fd).st_nlink, 0)
        equal(f"{name}: read", os.pread(fd, 100, 0), b"lower " + name.encode())
        works(f"{name}: write", os.pwrite, fd, b"written", 3)
        equal(f"{name}: read back", os.pread(fd, 100, 0), b"lowwritten"[: 10])
        works(f"{name}: truncate", os.ftruncate, fd, 5)
        equal(f"{name}: size", os.fstat(fd).st_size, 5)
        works(f"{name}: chmod", os.fchmod, fd, 0o640)
        equal(f"{name}: mode", os.fstat(fd).st_mode & 0o7777, 0o640)
        works(f"{name}: chown", os.fchown, fd, os.geteuid(), os.getegid())
        works(f"{name}: utimes", os.utime, fd, ns=(5, 1234567890123456789))
        equal(f"{name}: mtime", os.fstat(fd).st_mtime_ns, 1234567890123456789)
        works(f"{name}: setxattr", os.setxattr, fd, "user.a", b"v")
        equal(f"{name}: getxattr", os.getxattr(fd, "user.a"), b"v")
        equal(f"{name}: listxattr", [x for x in os.listxattr(fd) if x.startswith("user.")], ["user.a"])
        works(f"{name}: fallocate", os.posix_fallocate, fd, 0, 9000)
        works(f"{name}: fsync", os.fsync, fd)
        with mmap.mmap(fd, 4096) as map:
            map[0:3] = b"MAP"
        equal(f"{name}: map reached the file", os.pread(fd, 3, 0), b"MAP")
        write_file(f"{d}/{name}", b"another")
        equal(f"{name}: a new file of that name is another one", os.pread(fd, 3, 0), b"MAP")
        equal(f"{name}: and the new one its own", read_file(f"{d}/{name}"), b"another")
        os.close(fd)
    for name in ("low2", "big"):
        fd = os.open(f"{d}/{name}", os.O_RDONLY)
        before = os.fstat(fd)
        os.unlink(f"{d}/{name}")
        equal(f"{name}: nlink of a read-only descriptor is 0", os.fstat(fd).st_nlink, 0)
        equal(f"{name}: same inode, same size", (os.fstat(fd).st_ino, os.fstat(fd).st_size), (before.st_ino, before.st_size))
        works(f"{name}: chmod through it", os.fchmod, fd, 0o600)
        want = b"lower low2" if name == "low2" else pattern("big", 300000)
        equal(f"{name}: contents through it", os.pread(fd, 400000, 0), want)
        os.close(fd)
    fd = os.open(f"{d}/target", os.O_RDWR)
    write_file(f"{d}/source", b"source")
    os.rename(f"{d}/source", f"{d}/target")
    equal("replaced by rename: the old descriptor keeps the old file", os.pread(fd, 100, 0), b"lower target")
    works("replaced by rename: writes still go there", os.pwrite, fd, b"LOWER", 0)
    equal("replaced by rename: the name shows the new one", read_file(f"{d}/target"), b"source")
    os.close(fd)
    fd = os.open(f"{d}/dir", os.O_RDONLY)
    os.unlink(f"{d}/dir/f")
    os.rmdir(f"{d}/dir")
    works("removed directory: fstat", os.fstat, fd)
    equal("removed directory: lists nothing", os.listdir(fd), [])
    fails("removed directory: takes no file", errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.close(fd)
    equal("nothing else appeared", names(d), ["low", "low3", "new", "target"])


def lower_old_descriptors(d):
    write_file(f"{d}/small", pattern("small", 3000))
    write_file(f"{d}/large", pattern("large", 150000).hex().encode())
    write_file(f"{d}/binary", pattern("binary", 300000))
    write_file(f"{d}/mapped", pattern("mapped", 20000))
    write_file(f"{d}/cut", pattern("cut", 9000))


@case
def old_descriptors(d):
    # A large lower file that is not text may be the kernel's own business: then old descriptors keep the old content,
    # whole, unless the union is mounted with `coherent`.
    for name in ("small", "large") + (("binary",) if COHERENT or NATIVE else ()):
        old = os.open(f"{d}/{name}", os.O_RDONLY)
        start = os.pread(old, 10, 0)
        ino = os.fstat(old).st_ino
        new = os.open(f"{d}/{name}", os.O_RDWR)
        os.pwrite(new, b"CHANGED", 0)
        end = os.fstat(new).st_size
        os.pwrite(new, b"GROWN", end)
        check(f"{name}: it was the lower file", start[:7] != b"CHANGED")
        equal(f"{name}: the old descriptor sees new data", os.pread(old, 7, 0), b"CHANGED")
        equal(f"{name}: the old descriptor sees the new size", os.fstat(old).st_size, end + 5)
        equal(f"{name}: and reads the new end", os.pread(old, 100, end), b"GROWN")
        equal(f"{name}: one inode number", (os.fstat(old).st_ino, os.fstat(new).st_ino), (ino, ino))
        fcntl.flock(old, fcntl.LOCK_EX)
        third = os.open(f"{d}/{name}", os.O_RDONLY)
        fails(f"{name}: a lock on the old descriptor holds", errno.EAGAIN, fcntl.flock, third, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fails(f"{name}: also against the new one", errno.EAGAIN, fcntl.flock, new, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(third)
        os.close(new)
        os.close(old)
    if not COHERENT and not NATIVE:
        old = os.open(f"{d}/binary", os.O_RDONLY)
        data = pattern("binary", 300000)
        append_file(f"{d}/binary", b"GROWN")
        check("binary: an old descriptor sees the old or the new content, whole", os.pread(old, 400000, 0) in (data, data + b"GROWN"))
        equal("binary: new descriptors see the new content", read_file(f"{d}/binary"), data + b"GROWN")
        equal("binary: one inode number", os.fstat(old).st_ino, os.stat(f"{d}/binary").st_ino)
        os.close(old)
    old = os.open(f"{d}/mapped", os.O_RDONLY)
    with mmap.mmap(old, 20000, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        before = view[:4]
        new = os.open(f"{d}/mapped", os.O_WRONLY)
        os.pwrite(new, b"MAPPED", 0)
        os.close(new)
        check("the map showed the lower file", before != b"MAPP")
        equal("a map made before the copy-up sees the new data", view[:6], b"MAPPED")
    os.close(old)
    old = os.open(f"{d}/cut", os.O_RDONLY)
    os.truncate(f"{d}/cut", 10)
    equal("truncate by name shows in an old descriptor", (os.fstat(old).st_size, len(os.pread(old, 100, 0))), (10, 10))
    os.close(old)


def lower_maps(d):
    write_file(f"{d}/shared", pattern("shared", 10000))
    write_file(f"{d}/private", pattern("private", 10000))
    shutil.copy("/bin/true", f"{d}/program")


@case
def maps(d):
    fd = os.open(f"{d}/shared", os.O_RDWR)
    before = os.stat(f"{d}/shared").st_mtime_ns
    time.sleep(0.02)
    with mmap.mmap(fd, 10000) as map:
        map[5000:5005] = b"STORE"
        equal("a store in a shared map is read at once", os.pread(fd, 5, 5000), b"STORE")
        os.pwrite(fd, b"WRITE", 100)
        equal("a write is seen in the map", map[100:105], b"WRITE")
        map.flush()
    os.close(fd)
    equal("a shared map's store stays", read_file(f"{d}/shared")[5000:5005], b"STORE")
    check("it moves mtime", os.stat(f"{d}/shared").st_mtime_ns > before)
    fd = os.open(f"{d}/private", os.O_RDONLY)
    with mmap.mmap(fd, 10000, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as map:
        map[0:4] = b"MINE"
    os.close(fd)
    equal("a private map's store does not", read_file(f"{d}/private"), pattern("private", 10000))
    fd = os.open(f"{d}/new", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8192)
    with mmap.mmap(fd, 8192) as map:
        map[4096:4099] = b"new"
    os.close(fd)
    equal("a map of a new file", read_file(f"{d}/new")[4096:4099], b"new")
    equal("a lower program runs", subprocess.run([f"{d}/program"]).returncode, 0)
    os.chmod(f"{d}/program", 0o700)
    append_file(f"{d}/program", b"\0")
    equal("and runs when copied up", subprocess.run([f"{d}/program"]).returncode, 0)


# ---- links -----------------------------------------------------------------------------------------------------------


def lower_hard_links(d):
    os.mkdir(f"{d}/sub")
    for name in ("a", "p", "r"):
        write_file(f"{d}/{name}1", b"linked")
        os.link(f"{d}/{name}1", f"{d}/{name}2")
        os.link(f"{d}/{name}1", f"{d}/sub/{name}3")
    os.symlink("x", f"{d}/s1")
    os.link(f"{d}/s1", f"{d}/s2", follow_symlinks=False)


@case
def hard_links(d):
    a = [f"{d}/a1", f"{d}/a2", f"{d}/sub/a3"]
    stats = [os.stat(n) for n in a]
    equal("lower links share a number", len({s.st_ino for s in stats}), 1)
    equal("and count 3", {s.st_nlink for s in stats}, {3})
    append_file(a[0], b"+1")
    equal("what is written through one is read through all", {read_file(n) for n in a}, {b"linked+1"})
    equal("still one number", {os.stat(n).st_ino for n in a}, {stats[0].st_ino})
    equal("still 3 links", {os.stat(n).st_nlink for n in a}, {3})
    os.chmod(a[1], 0o600)
    equal("chmod through one shows through all", {os.stat(n).st_mode & 0o777 for n in a}, {0o600})
    append_file(a[2], b"+3")
    equal("a write through another one too", {read_file(n) for n in a}, {b"linked+1+3"})
    os.link(a[1], f"{d}/a4")
    equal("a fourth link", {os.stat(n).st_nlink for n in [*a, f"{d}/a4"]}, {4})
    os.unlink(a[0])
    equal("one gone", {os.stat(n).st_nlink for n in [a[1], a[2], f"{d}/a4"]}, {3})
    equal("the others stay", read_file(a[2]), b"linked+1+3")
    os.rename(a[1], f"{d}/moved")
    equal("rename keeps count and number", (os.stat(f"{d}/moved").st_nlink, os.stat(f"{d}/moved").st_ino), (3, stats[0].st_ino))
    works("rename of a link onto its twin does nothing", os.rename, f"{d}/moved", f"{d}/a4")
    equal("both names stay", (os.path.exists(f"{d}/moved"), os.path.exists(f"{d}/a4")), (True, True))
    ctime = os.stat(f"{d}/p2").st_ctime_ns
    time.sleep(0.02)
    os.unlink(f"{d}/p1")
    equal("unlink of a lower link lowers the count of the rest", {os.stat(n).st_nlink for n in (f"{d}/p2", f"{d}/sub/p3")}, {2})
    check("and moves their ctime", os.stat(f"{d}/p2").st_ctime_ns > ctime)
    append_file(f"{d}/p2", b"!")
    equal("copy-up after that", (read_file(f"{d}/sub/p3"), os.stat(f"{d}/sub/p3").st_nlink), (b"linked!", 2))
    os.link(f"{d}/r1", f"{d}/r4")
    equal("link of a lower file", {os.stat(n).st_nlink for n in (f"{d}/r1", f"{d}/r2", f"{d}/sub/r3", f"{d}/r4")}, {4})
    append_file(f"{d}/r4", b"!")
    equal("is one file", {read_file(n) for n in (f"{d}/r1", f"{d}/r2", f"{d}/sub/r3")}, {b"linked!"})
    write_file(f"{d}/n1", b"new")
    os.link(f"{d}/n1", f"{d}/n2")
    equal("new links", (os.stat(f"{d}/n1").st_ino, os.stat(f"{d}/n1").st_nlink), (os.stat(f"{d}/n2").st_ino, 2))
    fails("link onto a taken name", errno.EEXIST, os.link, f"{d}/n1", f"{d}/r2")
    fails("link of a directory", errno.EPERM, os.link, f"{d}/sub", f"{d}/sub2")
    equal("linked symbolic links", (os.lstat(f"{d}/s1").st_nlink, os.lstat(f"{d}/s2").st_ino), (2, os.lstat(f"{d}/s1").st_ino))


def lower_symlinks(d):
    os.symlink("target", f"{d}/relative")
    os.symlink("/etc/passwd", f"{d}/absolute")
    os.symlink("t" * 4095, f"{d}/longest")
    write_file(f"{d}/target", b"target")
    os.mkdir(f"{d}/dir")
    os.symlink("../target", f"{d}/dir/up")


@case
def symlinks(d):
    equal("relative", (os.readlink(f"{d}/relative"), read_file(f"{d}/relative")), ("target", b"target"))
    equal("absolute", os.readlink(f"{d}/absolute"), "/etc/passwd")
    equal("longest", os.readlink(f"{d}/longest"), "t" * 4095)
    equal("upwards", read_file(f"{d}/dir/up"), b"target")
    os.utime(f"{d}/relative", ns=(1, 77), follow_symlinks=False)
    equal("its own times", os.lstat(f"{d}/relative").st_mtime_ns, 77)
    equal("after copy-up", os.readlink(f"{d}/relative"), "target")
    os.symlink("s" * 4000, f"{d}/new")
    equal("new", (os.readlink(f"{d}/new"), os.lstat(f"{d}/new").st_size), ("s" * 4000, 4000))
    fails("onto a lower name", errno.EEXIST, os.symlink, "x", f"{d}/target")
    fails("O_NOFOLLOW", errno.ELOOP, os.open, f"{d}/absolute", os.O_RDONLY | os.O_NOFOLLOW)
    os.unlink(f"{d}/absolute")
    os.symlink("other", f"{d}/absolute")
    equal("replaced", os.readlink(f"{d}/absolute"), "other")
    os.symlink("loop", f"{d}/loop")
    fails("a loop", errno.ELOOP, os.stat, f"{d}/loop")


# ---- data ------------------------------------------------------------------------------------------------------------

MIB = 1 << 20


def _make_sparse(path):
    with open(path, "wb") as file:
        file.truncate(16 * MIB)
        os.pwrite(file.fileno(), pattern("sparse", 64 << 10), 1 * MIB)
        os.pwrite(file.fileno(), pattern("more", 4096), 9 * MIB)


def lower_sparse(d):
    _make_sparse(f"{d}/s")
    _make_sparse(f"{d}/chmod")
    with open(f"{d}/hole", "wb") as file:
        file.truncate(1 << 40)


@case
def sparse(d):
    want = [(MIB, MIB + (64 << 10)), (9 * MIB, 9 * MIB + 4096)]
    fd = os.open(f"{d}/s", os.O_RDONLY)
    equal("holes of a lower file", extents(fd), want)
    os.close(fd)
    append_file(f"{d}/s", b"end")
    fd = os.open(f"{d}/s", os.O_RDONLY)
    os.fsync(fd)
    # (The last extent starts at a block boundary.)
    equal("holes after copy-up", extents(fd), [*want, (16 * MIB, 16 * MIB + 3)])
    equal("data after copy-up", (os.pread(fd, 4096, 9 * MIB), os.pread(fd, 10, 16 * MIB)), (pattern("more", 4096), b"end"))
    check("it stays sparse", os.fstat(fd).st_blocks < 512, f"{os.fstat(fd).st_blocks} blocks")
    fails("SEEK_DATA past the end", errno.ENXIO, os.lseek, fd, 17 * MIB, os.SEEK_DATA)
    equal("SEEK_HOLE in data", os.lseek(fd, MIB + 10, os.SEEK_HOLE), want[0][1])
    os.close(fd)
    os.chmod(f"{d}/chmod", 0o600)
    check("sparse after chmod", os.stat(f"{d}/chmod").st_blocks < 512)
    equal("with its data", read_file(f"{d}/chmod")[MIB : MIB + (64 << 10)], pattern("sparse", 64 << 10))
    began = time.monotonic()
    append_file(f"{d}/hole", b"x")
    check("a hole of a tebibyte is copied up at once", time.monotonic() - began < 10)
    equal("and is as long", os.stat(f"{d}/hole").st_size, (1 << 40) + 1)
    os.unlink(f"{d}/hole")


def lower_allocate(d):
    for name in ("low", "ro"):
        write_file(f"{d}/{name}", pattern("allocate", 40960))


@case
def allocate(d):
    data = pattern("allocate", 40960)
    write_file(f"{d}/new", data)
    for name in ("low", "new"):
        fd = os.open(f"{d}/{name}", os.O_RDWR)
        works(f"{name}: allocate beyond the end, size kept", fallocate, fd, FALLOC_KEEP_SIZE, 40960, 8192)
        equal(f"{name}: size kept", os.fstat(fd).st_size, 40960)
        works(f"{name}: allocate", fallocate, fd, 0, 40960, 8192)
        equal(f"{name}: size", os.fstat(fd).st_size, 49152)
        works(f"{name}: punch", fallocate, fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 4096, 8192)
        equal(f"{name}: punched", os.pread(fd, 49152, 0), data[:4096] + bytes(8192) + data[12288:] + bytes(8192))
        works(f"{name}: zero", fallocate, fd, FALLOC_ZERO, 20480, 4096)
        equal(f"{name}: zeroed", os.pread(fd, 8192, 16384), data[16384:20480] + bytes(4096))
        works(f"{name}: zero beyond the end", fallocate, fd, FALLOC_ZERO, 49152, 4096)
        equal(f"{name}: size", os.fstat(fd).st_size, 53248)
        for word, mode in (("collapse", FALLOC_COLLAPSE), ("insert", FALLOC_INSERT)):
            size, code = os.fstat(fd).st_size, attempt(fallocate, fd, mode, 4096, 4096)
            check(f"{name}: {word} works or is not supported", code in (0, errno.EOPNOTSUPP), code)
            moved = {0: 4096 if mode == FALLOC_INSERT else -4096}.get(code, 0)
            equal(f"{name}: {word} and the size", os.fstat(fd).st_size, size + moved)
        fails(f"{name}: punch without keep-size", errno.EOPNOTSUPP, fallocate, fd, FALLOC_PUNCH_HOLE, 0, 4096)
        fails(f"{name}: length 0", errno.EINVAL, fallocate, fd, 0, 0, 0)
        os.close(fd)
    fd = os.open(f"{d}/ro", os.O_RDONLY)
    fails("on a read-only descriptor", errno.EBADF, fallocate, fd, 0, 0, 100000)
    os.close(fd)
    equal("which changed nothing", read_file(f"{d}/ro"), data)


def lower_copies(d):
    write_file(f"{d}/from", pattern("from", 200000))
    write_file(f"{d}/into", pattern("into", 100000))


@case
def copies(d):
    data, other = pattern("from", 200000), pattern("into", 100000)
    source = os.open(f"{d}/from", os.O_RDONLY)

    def whole(to, at):
        done = 0
        while done < 200000:
            count = os.copy_file_range(source, to, 200000 - done, done, at + done)
            if count == 0:
                break
            done += count
        return done

    new = os.open(f"{d}/new", os.O_RDWR | os.O_CREAT)
    equal("copy_file_range from a lower file to a new one", whole(new, 0), 200000)
    equal("data", os.pread(new, 300000, 0), data)
    equal("within one file", os.copy_file_range(new, new, 1000, 0, 150000), 1000)
    equal("data", os.pread(new, 1000, 150000), data[:1000])
    fails("overlapping", errno.EINVAL, os.copy_file_range, new, new, 1000, 0, 500)
    equal("past the end", os.copy_file_range(source, new, 10, 200000, 0), 0)
    into = os.open(f"{d}/into", os.O_RDWR)
    equal("into a lower file", whole(into, 50000), 200000)
    equal("data", os.pread(into, 300000, 0), other[:50000] + data)
    sent = os.open(f"{d}/sent", os.O_RDWR | os.O_CREAT)
    count = 0
    while got := os.sendfile(sent, source, count, 200000):
        count += got
    equal("sendfile", os.pread(sent, 300000, 0), data)
    read, write = os.pipe()
    equal("splice", os.splice(source, write, 4096, offset_src=8192), 4096)
    equal("data", os.read(read, 5000), data[8192 : 8192 + 4096])
    for fd in (source, new, into, sent, read, write):
        os.close(fd)
    shutil.copyfile(f"{d}/from", f"{d}/copy")
    equal("a plain copy", read_file(f"{d}/copy"), data)


def lower_truncation(d):
    for name in ("zero", "shorter", "longer", "otrunc", "rotrunc", "fd"):
        write_file(f"{d}/{name}", pattern(name, 100000))


@case
def truncation(d):
    os.truncate(f"{d}/zero", 0)
    os.truncate(f"{d}/shorter", 777)
    os.truncate(f"{d}/longer", 200000)
    equal("to nothing", read_file(f"{d}/zero"), b"")
    equal("shorter", read_file(f"{d}/shorter"), pattern("shorter", 777))
    equal("longer", read_file(f"{d}/longer"), pattern("longer", 100000) + bytes(100000))
    fd = os.open(f"{d}/otrunc", os.O_WRONLY | os.O_TRUNC)
    equal("O_TRUNC", os.fstat(fd).st_size, 0)
    os.write(fd, b"new")
    os.close(fd)
    equal("O_TRUNC, then written", read_file(f"{d}/otrunc"), b"new")
    fd = os.open(f"{d}/rotrunc", os.O_RDONLY | os.O_TRUNC)
    os.close(fd)
    equal("O_RDONLY|O_TRUNC truncates too, in the union", read_file(f"{d}/rotrunc"), b"")
    fd = os.open(f"{d}/fd", os.O_RDWR)
    os.ftruncate(fd, 50)
    os.pwrite(fd, b"x", 99)
    os.close(fd)
    equal("ftruncate, then written past the end", read_file(f"{d}/fd"), pattern("fd", 50) + bytes(49) + b"x")
    fails("of a directory", errno.EISDIR, os.truncate, d, 0)
    fails("of nothing", errno.ENOENT, os.truncate, f"{d}/none", 0)
    fails("to a negative size", errno.EINVAL, os.truncate, f"{d}/zero", -1)


def lower_opening(d):
    for name in ("f", "g", "append", "direct", "gone", "busy_write"):
        write_file(f"{d}/{name}", pattern(name, 8192))
    os.mkdir(f"{d}/dir")
    shutil.copy("/bin/sleep", f"{d}/sleep")
    os.chmod(f"{d}/sleep", 0o755)
    os.symlink("f", f"{d}/link")


@case
def opening(d):
    fails("O_EXCL on a lower file", errno.EEXIST, os.open, f"{d}/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    fails("O_EXCL on a link", errno.EEXIST, os.open, f"{d}/link", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    fails("O_DIRECTORY on a file", errno.ENOTDIR, os.open, f"{d}/f", os.O_DIRECTORY)
    fails("a directory for writing", errno.EISDIR, os.open, f"{d}/dir", os.O_WRONLY)
    fails("a file as a directory", errno.ENOTDIR, os.stat, f"{d}/f/x")
    fails("nothing", errno.ENOENT, os.open, f"{d}/none", os.O_RDONLY)
    fails("a file below nothing", errno.ENOENT, os.open, f"{d}/none/x", os.O_CREAT | os.O_WRONLY)
    fd = os.open(f"{d}/append", os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"tail")
    equal("O_APPEND", os.pread(fd, 10, 8192), b"tail")
    os.close(fd)
    fd = os.open(f"{d}/f", os.O_PATH)
    equal("O_PATH", os.fstat(fd).st_size, 8192)
    os.close(fd)
    fd = os.open(f"{d}/g", os.O_WRONLY)
    fails("reading a write-only descriptor", errno.EBADF, os.read, fd, 1)
    os.write(fd, b"G")
    os.close(fd)
    fd = os.open(f"{d}/g", os.O_RDONLY)
    fails("writing a read-only descriptor", errno.EBADF, os.write, fd, b"x")
    fails("truncating it", errno.EINVAL, os.ftruncate, fd, 1)
    os.close(fd)
    os.unlink(f"{d}/gone")
    fails("a deleted lower file", errno.ENOENT, os.open, f"{d}/gone", os.O_RDWR)
    fd = os.open(f"{d}/gone", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    equal("made again, empty", (os.fstat(fd).st_size, os.fstat(fd).st_mode & 0o777), (0, 0o600))
    os.close(fd)
    fd = os.open(f"{d}/read-only-new", os.O_CREAT | os.O_RDWR, 0o400)
    works("a new file of mode 0400 can be written by its maker", os.write, fd, b"x")
    os.close(fd)
    for flag in (os.O_SYNC, os.O_DSYNC, os.O_NOATIME, os.O_NONBLOCK):
        fd = works(f"flag {flag:#o}", os.open, f"{d}/f", os.O_RDWR | flag)
        os.close(fd)
    for name in ("direct", "direct-new"):
        fd = works(f"{name}: O_DIRECT", os.open, f"{d}/{name}", os.O_RDWR | os.O_DIRECT | os.O_CREAT)
        if fd is not None:
            with mmap.mmap(-1, 4096) as page:
                page[:] = pattern("page", 4096)
                equal(f"{name}: write", os.pwritev(fd, [page], 4096), 4096)
                page[:] = bytes(4096)
                equal(f"{name}: read", os.preadv(fd, [page], 4096), 4096)
                equal(f"{name}: data", bytes(page), pattern("page", 4096))
            os.close(fd)
    sleeper = subprocess.Popen([f"{d}/sleep", "30"])
    time.sleep(0.1)
    fails("a running program for writing", errno.ETXTBSY, os.open, f"{d}/sleep", os.O_WRONLY)
    works("it can be removed", os.unlink, f"{d}/sleep")
    equal("and runs on", sleeper.poll(), None)
    sleeper.kill()
    sleeper.wait()
    fd = os.open(f"{d}/busy_write", os.O_WRONLY)
    os.fchmod(fd, 0o755)
    fails("running a file that is open for writing", errno.ETXTBSY, os.execv, f"{d}/busy_write", ["x"])
    os.close(fd)


def lower_tmpfile(d):
    pass


@case
def tmpfile(d):
    try:
        fd = os.open(d, O_TMPFILE | os.O_RDWR, 0o644)
    except OSError as error:
        # The kernel's word for "this filesystem has none"; every program has another way then.
        equal("O_TMPFILE is not offered", error.errno, errno.EOPNOTSUPP)
        return
    os.write(fd, b"nameless")
    equal("nlink 0", os.fstat(fd).st_nlink, 0)
    equal("no name", names(d), [])
    works("gets a name", link_fd, fd, f"{d}/named")
    equal("and is that file", read_file(f"{d}/named"), b"nameless")
    os.close(fd)


def lower_syncing(d):
    write_file(f"{d}/f", b"f")


@case
def syncing(d):
    fd = os.open(f"{d}/f", os.O_RDWR)
    works("fsync of an unchanged lower file", os.fsync, fd)
    os.write(fd, b"new")
    works("fsync", os.fsync, fd)
    works("fdatasync", os.fdatasync, fd)
    works("fadvise", os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED)
    equal("syncfs", lib_call("syncfs", fd), 0)
    os.close(fd)
    fd = os.open(d, os.O_RDONLY)
    works("fsync of a directory", os.fsync, fd)
    os.close(fd)


def lib_call(name, *args):
    return getattr(ctypes.CDLL(None, use_errno=True), name)(*args)


def lower_locks(d):
    write_file(f"{d}/f", b"0" * 100)


@case
def locks(d):
    fd = os.open(f"{d}/f", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)

    def other():
        fd = os.open(f"{d}/f", os.O_RDWR)
        free = attempt(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
        taken = attempt(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 25)
        return [free, taken]

    equal("record locks exclude, bytes apart do not", in_child(other), [0, errno.EAGAIN])
    fcntl.lockf(fd, fcntl.LOCK_UN, 10, 20)
    equal("and are given back", in_child(other), [0, 0])
    os.close(fd)


def in_child(call):
    return as_user(call, os.geteuid(), os.getegid()) if os.geteuid() == 0 and _real_root() else _forked(call)


def _forked(call):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, json.dumps(call()).encode())
        os._exit(0)
    os.close(write)
    value = json.loads(os.read(read, 65536))
    os.close(read)
    os.wait()
    return value


# ---- names and directories -------------------------------------------------------------------------------------------


def lower_renames(d):
    for name in ("f", "g", "h", "over", "deleted", "x1", "x2", "x3", "x4", "keep", "w"):
        write_file(f"{d}/{name}", b"lower " + name.encode())
    for name in ("dir", "full", "empty", "victim", "cur", "e1", "e2", "into", "swap"):
        os.mkdir(f"{d}/{name}")
    for name in ("dir", "full", "victim", "cur", "e1", "e2", "swap"):
        write_file(f"{d}/{name}/{name}-child", name.encode())
    os.makedirs(f"{d}/dir/deep/er")
    write_file(f"{d}/dir/deep/er/leaf", b"leaf")


@case
def renames(d):
    p = lambda name: f"{d}/{name}"
    os.rename(p("f"), p("f2"))
    equal("lower file", (read_file(p("f2")), os.path.exists(p("f"))), (b"lower f", False))
    os.rename(p("f2"), p("f"))
    equal("and back", (read_file(p("f")), os.path.exists(p("f2"))), (b"lower f", False))
    os.rename(p("g"), p("over"))
    equal("over a lower file", (read_file(p("over")), os.path.exists(p("g"))), (b"lower g", False))
    os.unlink(p("deleted"))
    write_file(p("new"), b"new")
    os.rename(p("new"), p("deleted"))
    equal("onto a deleted name", read_file(p("deleted")), b"new")
    move_directory(p("dir"), p("dir2"))
    equal("lower directory, with all below", read_file(p("dir2/deep/er/leaf")), b"leaf")
    equal("its old name is gone", os.path.exists(p("dir")), False)
    write_file(p("dir2/deep/er/more"), b"more")
    os.rename(p("dir2/deep"), p("deep"))
    equal("a directory out of a renamed one", names(p("deep/er")), ["leaf", "more"])
    os.mkdir(p("dir"))
    equal("a new directory of the old name is empty", names(p("dir")), [])
    os.rename(p("dir2"), p("dir"))
    equal("back over it", names(p("dir")), ["dir-child"])
    fails("a directory over a full lower one", errno.ENOTEMPTY, os.rename, p("dir"), p("full"))
    os.mkdir(p("fresh"))
    fails("an empty one too", errno.ENOTEMPTY, os.rename, p("fresh"), p("full"))
    works("over an empty lower directory", os.rename, p("dir"), p("empty"))
    equal("it took its place", names(p("empty")), ["dir-child"])
    os.unlink(p("victim/victim-child"))
    works("over an emptied lower directory", os.rename, p("empty"), p("victim"))
    equal("nothing comes back", names(p("victim")), ["dir-child"])
    fails("file over directory", errno.EISDIR, os.rename, p("h"), p("full"))
    fails("directory over file", errno.ENOTDIR, os.rename, p("full"), p("h"))
    fails("into itself", errno.EINVAL, os.rename, p("full"), p("full/inside"))
    fails("of nothing", errno.ENOENT, os.rename, p("none"), p("x"))
    works("onto itself", os.rename, p("h"), p("h"))
    # The deploy swap.
    os.mkdir(p("next"))
    write_file(p("next/v2"), b"v2")
    move_directory(p("cur"), p("old"))
    os.rename(p("next"), p("cur"))
    equal("deploy swap", (names(p("cur")), names(p("old"))), (["v2"], ["cur-child"]))
    # Flags.
    fails("NOREPLACE onto a lower name", errno.EEXIST, renameat2, p("h"), p("keep"), RENAME_NOREPLACE)
    equal("changed nothing", (read_file(p("h")), read_file(p("keep"))), (b"lower h", b"lower keep"))
    works("NOREPLACE onto a free name", renameat2, p("h"), p("h2"), RENAME_NOREPLACE)
    equal("moved", (read_file(p("h2")), os.path.exists(p("h"))), (b"lower h", False))
    works("NOREPLACE onto a deleted lower name", renameat2, p("h2"), p("h"), RENAME_NOREPLACE)
    write_file(p("u1"), b"upper u1")
    os.mkdir(p("ud"))
    write_file(p("ud/x"), b"x")
    for one, two in (("x1", "x2"), ("x3", "u1"), ("x4", "e1"), ("e2", "ud"), ("u1", "e2"), ("e1", "full")):
        before = [_shown(p(one)), _shown(p(two))]
        if NO_REDIRECT and {one, two} & {"e1", "e2"}:
            fails(f"EXCHANGE {one} and {two} without redirects", errno.EXDEV, renameat2, p(one), p(two), RENAME_EXCHANGE)
            equal("changes nothing", [_shown(p(one)), _shown(p(two))], before)
            continue
        works(f"EXCHANGE {one} and {two}", renameat2, p(one), p(two), RENAME_EXCHANGE)
        equal(f"EXCHANGE {one} and {two} swapped both", [_shown(p(two)), _shown(p(one))], before)
    fails("EXCHANGE with nothing", errno.ENOENT, renameat2, p("x1"), p("none"), RENAME_EXCHANGE)
    fails("EXCHANGE with what is inside", errno.EINVAL, renameat2, p("swap"), p("swap/swap-child"), RENAME_EXCHANGE)
    fails("EXCHANGE and NOREPLACE", errno.EINVAL, renameat2, p("x1"), p("x2"), RENAME_EXCHANGE | RENAME_NOREPLACE)
    fails("an unknown flag", errno.EINVAL, renameat2, p("x1"), p("x2"), 64)
    if NATIVE:
        return
    fails("WHITEOUT: a mark cannot be made through the mount", (errno.EINVAL, errno.EPERM), renameat2, p("w"), p("w2"), RENAME_WHITEOUT)
    equal("and changed nothing", (read_file(p("w")), os.path.exists(p("w2"))), (b"lower w", False))


def _shown(path):
    return names(path) if os.path.isdir(path) else read_file(path)


def lower_removal(d):
    for name in ("f", "g", "turns"):
        write_file(f"{d}/{name}", name.encode())
    for name in ("full", "gone", "turned"):
        os.mkdir(f"{d}/{name}")
        write_file(f"{d}/{name}/a", b"lower a")
        write_file(f"{d}/{name}/b", b"lower b")
    os.mkdir(f"{d}/empty")


@case
def removal(d):
    fails("rmdir of a full lower directory", errno.ENOTEMPTY, os.rmdir, f"{d}/full")
    fails("rmdir of a file", errno.ENOTDIR, os.rmdir, f"{d}/f")
    fails("unlink of a directory", errno.EISDIR, os.unlink, f"{d}/full")
    fails("mkdir of a lower name", errno.EEXIST, os.mkdir, f"{d}/empty")
    fails("rmdir of .", errno.EINVAL, os.rmdir, f"{d}/.")
    works("rmdir of an empty lower directory", os.rmdir, f"{d}/empty")
    fails("it is gone", errno.ENOENT, os.stat, f"{d}/empty")
    works("unlink", os.unlink, f"{d}/f")
    fails("again", errno.ENOENT, os.unlink, f"{d}/f")
    shutil.rmtree(f"{d}/gone")
    os.mkdir(f"{d}/gone")
    equal("a directory deleted and made again is empty", names(f"{d}/gone"), [])
    fails("by name too", errno.ENOENT, os.stat, f"{d}/gone/a")
    write_file(f"{d}/gone/b", b"new b")
    equal("and takes an old name", (names(f"{d}/gone"), read_file(f"{d}/gone/b")), (["b"], b"new b"))
    shutil.rmtree(f"{d}/turned")
    write_file(f"{d}/turned", b"a file now")
    equal("a file in a directory's place", read_file(f"{d}/turned"), b"a file now")
    os.unlink(f"{d}/turned")
    os.mkdir(f"{d}/turned")
    equal("and back", names(f"{d}/turned"), [])
    os.unlink(f"{d}/turns")
    os.mkdir(f"{d}/turns")
    write_file(f"{d}/turns/x", b"x")
    equal("a directory in a file's place", names(f"{d}/turns"), ["x"])
    os.mkdir(f"{d}/up")
    write_file(f"{d}/up/x", b"x")
    shutil.rmtree(f"{d}/up")
    equal("what is left", names(d), ["full", "g", "gone", "turned", "turns"])


LONG = "n" * 255


def lower_long_names(d):
    write_file(f"{d}/{LONG}", b"long")
    write_file(f"{d}/{'m' * 250}", b"250")
    os.mkdir(f"{d}/{'d' * 255}")
    write_file(os.fsencode(d) + b"/\xff\xfe\n\t\x01", b"bytes")
    write_file(f"{d}/ space", b"space")


@case
def long_names(d):
    equal("a lower name of 255 bytes", read_file(f"{d}/{LONG}"), b"long")
    works("is renamed", os.rename, f"{d}/{LONG}", f"{d}/{'r' * 255}")
    works("and deleted", os.unlink, f"{d}/{'r' * 255}")
    works("one of 250 is deleted", os.unlink, f"{d}/{'m' * 250}")
    works("a directory of 255 is removed", os.rmdir, f"{d}/{'d' * 255}")
    equal("all gone", [n for n in names(d) if len(n) > 200], [])
    works("made again", write_file, f"{d}/{LONG}", b"again")
    equal("with its own data", read_file(f"{d}/{LONG}"), b"again")
    odd = os.fsencode(d) + b"/\xff\xfe\n\t\x01"
    append_file(odd, b"!")
    equal("any bytes", read_file(odd), b"bytes!")
    works("deleted", os.unlink, odd)
    for length in (256, 300, 1000):
        name = f"{d}/{'x' * length}"
        long = errno.ENAMETOOLONG
        fails(f"{length}: create", long, os.open, name, os.O_CREAT | os.O_WRONLY)
        fails(f"{length}: stat", long, os.stat, name)
        fails(f"{length}: mkdir", long, os.mkdir, name)
        fails(f"{length}: symlink", long, os.symlink, "x", name)
        fails(f"{length}: mknod", long, os.mkfifo, name)
        fails(f"{length}: link", long, os.link, f"{d}/{LONG}", name)
        fails(f"{length}: rename to", long, os.rename, f"{d}/{LONG}", name)
        fails(f"{length}: rename from", long, os.rename, name, f"{d}/short")
        fails(f"{length}: unlink", long, os.unlink, name)
        fails(f"{length}: rmdir", long, os.rmdir, name)
    equal("statfs says 255", os.statvfs(d).f_namemax, 255)


def lower_long_paths(d):
    fd = path_below(d, ["L" * 250] * 20)
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


@case
def long_paths(d):
    fd = path_below(d, ["L" * 250] * 20)
    equal("a lower path of 5000 bytes", os.listdir(fd), ["leaf"])
    file = os.open("leaf", os.O_WRONLY, dir_fd=fd)
    os.write(file, b"deep")
    os.close(file)
    os.rename("leaf", "leaf2", src_dir_fd=fd, dst_dir_fd=fd)
    file = os.open("leaf2", os.O_RDONLY, dir_fd=fd)
    equal("written and renamed", os.read(file, 10), b"deep")
    os.close(file)
    os.unlink("leaf2", dir_fd=fd)
    equal("deleted", os.listdir(fd), [])
    os.close(fd)
    fd = path_below(d, ["N" * 250] * 20)
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    equal("a new path of 5000 bytes", os.listdir(fd), ["new"])
    os.close(fd)
    fd = os.open(d, os.O_RDONLY)
    works("all of it is removed again", shutil.rmtree, "N" * 250, dir_fd=fd)
    os.close(fd)


MANY = 100_000


def lower_many(d):
    fd = os.open(d, os.O_RDONLY)
    os.close(os.open("00000", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    for n in range(1, MANY):
        # Links cost no inode; a directory of an ext4 holds 65,000 of one file.
        if n % 50_000 == 0:
            os.close(os.open(f"{n:05}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        else:
            os.link(f"{n - n % 50_000:05}", f"{n:05}", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)


@case
def many(d):
    listing = Directory(d)
    seen, places = [], []
    while (entry := listing.read()) is not None:
        seen.append(entry[0])
        if len(seen) % 9973 == 0:
            places.append((listing.tell(), len(seen)))
    plain = [n for n in seen if n not in (b".", b"..")]
    equal("100,000 entries, each once", (len(plain), len(set(plain))), (MANY, MANY))
    equal(". and ..", sorted(set(seen) - set(plain)), [b".", b".."])
    for place, index in reversed(places):
        listing.seek(place)
        if (got := listing.read()[0]) != seen[index]:
            check(f"seekdir to entry {index}", False, f"got {got}, expected {seen[index]}")
            break
    else:
        check("telldir and seekdir find every place again", True)
    # A listing under change: what stays is seen once, whatever comes and goes.
    listing.rewind()
    start = [listing.read()[0] for _ in range(1000)]
    for n in range(0, MANY, 97):
        os.unlink(f"{d}/{n:05}")
    for n in range(500):
        os.close(os.open(f"{d}/new{n}", os.O_CREAT | os.O_WRONLY))
    got = start + [e[0] for e in listing.rest()]
    listing.close()
    stayed = [f"{n:05}".encode() for n in range(MANY) if n % 97]
    equal("a listing under change shows nothing twice", len(got), len(set(got)))
    check("and misses nothing that stayed", set(stayed) <= set(got), len(set(stayed) - set(got)))
    want = sorted([*map(os.fsdecode, stayed), *(f"new{n}" for n in range(500))])
    equal("the next one shows the change", names(d) == want, True)


def lower_listing(d):
    for n in range(40):
        write_file(f"{d}/low{n:02}", b"x")
    os.mkdir(f"{d}/dir")
    os.symlink("x", f"{d}/link")
    os.mkfifo(f"{d}/fifo")


@case
def listing(d):
    for n in range(40):
        write_file(f"{d}/new{n:02}", b"x")
    os.unlink(f"{d}/low05")
    append_file(f"{d}/low07", b"y")
    stream = Directory(d)
    places = []
    while True:
        place = stream.tell()
        entry = stream.read()
        if entry is None:
            break
        places.append((place, entry))
    for _, (name, ino, kind) in places:
        if name == b"..":
            continue
        st = os.lstat(os.fsencode(d) + b"/" + name)
        if (ino, kind << 12) != (st.st_ino, stat.S_IFMT(st.st_mode)):
            check("d_ino and d_type agree with stat", False, (name, ino, kind << 12, st.st_ino, st.st_mode))
            break
    else:
        check("d_ino and d_type agree with stat", True)
    want = sorted([*(f"low{n:02}" for n in range(40) if n != 5), *(f"new{n:02}" for n in range(40)), "dir", "link", "fifo"])
    equal("names", sorted(os.fsdecode(e[0]) for _, e in places if e[0] not in (b".", b"..")), want)
    random.Random(1).shuffle(places)
    good = True
    for place, entry in places:
        stream.seek(place)
        good &= stream.read() == entry
    check("seekdir to every place, in any order", good)
    stream.close()
    equal("the inode number of ..", os.stat(f"{d}/dir/..").st_ino, os.stat(d).st_ino)


# ---- attributes ------------------------------------------------------------------------------------------------------


def lower_inodes(d):
    for n in range(8):
        write_file(f"{d}/f{n}", b"x" * n)
    os.makedirs(f"{d}/dir/sub")
    write_file(f"{d}/dir/g", b"g")
    os.link(f"{d}/dir/g", f"{d}/dir/h")
    numbers = {}
    for at, dirs, files in os.walk(d):
        for name in dirs + files:
            path = os.path.join(at, name)
            numbers[os.path.relpath(path, d)] = os.lstat(path).st_ino
    numbers["numbers"] = 0
    write_file(f"{d}/numbers", json.dumps(numbers).encode())


@case
def inodes(d):
    numbers = json.loads(read_file(f"{d}/numbers"))
    del numbers["numbers"]
    look = lambda: {n: os.lstat(f"{d}/{n}").st_ino for n in numbers}
    equal("the lower's own numbers", look(), numbers)
    append_file(f"{d}/f1", b"!")
    os.chmod(f"{d}/f2", 0o600)
    os.setxattr(f"{d}/f3", "user.a", b"b")
    os.chmod(f"{d}/dir", 0o700)
    write_file(f"{d}/dir/sub/new", b"new")
    os.link(f"{d}/f4", f"{d}/f4b")
    append_file(f"{d}/dir/h", b"!")
    equal("kept over copy-up", look(), numbers)
    if _real_root():
        drop_caches()
        equal("kept over forget", look(), numbers)
    os.rename(f"{d}/f5", f"{d}/f5b")
    equal("kept over rename", os.stat(f"{d}/f5b").st_ino, numbers["f5"])
    move_directory(f"{d}/dir", f"{d}/dir2")
    if not NO_REDIRECT:
        equal("of a directory too", [os.stat(f"{d}/dir2/{n}").st_ino for n in ("", "sub", "g")], [numbers[n] for n in ("dir", "dir/sub", "dir/g")])
    write_file(f"{d}/f6.new", b"new")
    os.rename(f"{d}/f6.new", f"{d}/f6")
    check("a file that replaced another has its own", os.stat(f"{d}/f6").st_ino != numbers["f6"])
    everything = [os.path.join(at, n) for at, ds, fs in os.walk(d) for n in ds + fs]
    by_number = {}
    for path in everything:
        st = os.lstat(path)
        by_number.setdefault(st.st_ino, []).append((path, st.st_nlink))
    shared = {i: v for i, v in by_number.items() if len(v) > 1 and any(n != len(v) for _, n in v)}
    equal("a number is shared by hard links only", shared, {})
    equal("one device", {os.lstat(p).st_dev for p in everything}, {os.stat(d).st_dev})


def lower_metadata(d):
    write_file(f"{d}/f", b"data")
    os.setxattr(f"{d}/f", "user.one", b"1")
    os.setxattr(f"{d}/f", "user.large", b"L" * 1000)
    os.chmod(f"{d}/f", 0o2751)
    os.utime(f"{d}/f", ns=(-123456789, -987654321987654321))
    os.mkdir(f"{d}/dir")
    write_file(f"{d}/dir/x", b"x")
    os.chmod(f"{d}/dir", 0o1700)
    os.setxattr(f"{d}/dir", "user.dir", b"d")
    os.utime(f"{d}/dir", ns=(7258118400123456789, 7258118400987654321))
    if _real_root():
        os.chown(f"{d}/f", USER, 12)
        os.chown(f"{d}/dir", 13, USER)
        os.setxattr(f"{d}/f", "trusted.t", b"t")
        os.setxattr(f"{d}/f", "security.capability", bytes.fromhex("0000000200040000000000000000000000000000"))
        os.chmod(f"{d}/f", 0o6751)
        os.utime(f"{d}/f", ns=(-123456789, -987654321987654321))
    os.symlink("f", f"{d}/link")
    os.utime(f"{d}/link", ns=(3, 4000000005), follow_symlinks=False)
    os.mkfifo(f"{d}/fifo", 0o622)
    os.utime(f"{d}/fifo", ns=(3, 4000000006))


def _facts(path):
    st = os.lstat(path)
    attributes = {}
    if not stat.S_ISLNK(st.st_mode):
        attributes = {n: os.getxattr(path, n) for n in os.listxattr(path, follow_symlinks=False)}
    size = None if stat.S_ISDIR(st.st_mode) else st.st_size
    return [st.st_mode, st.st_uid, st.st_gid, size, st.st_mtime_ns, st.st_atime_ns, st.st_ino, attributes]


@case
def metadata(d):
    facts = {n: _facts(f"{d}/{n}") for n in ("f", "dir", "link", "fifo")}
    equal("a time before 1970", facts["f"][4], -987654321987654321)
    equal("a time in 2200", facts["dir"][4], 7258118400987654321)
    os.setxattr(f"{d}/f", "user.x", b"x")
    os.removexattr(f"{d}/f", "user.x")
    equal("a file's copy has all the lower had", _facts(f"{d}/f"), facts["f"])
    os.setxattr(f"{d}/dir", "user.x", b"x")
    os.removexattr(f"{d}/dir", "user.x")
    equal("a directory's", _facts(f"{d}/dir"), facts["dir"])
    os.link(f"{d}/link", f"{d}/link2", follow_symlinks=False)
    equal("a symbolic link's", _facts(f"{d}/link"), facts["link"])
    os.link(f"{d}/fifo", f"{d}/fifo2")
    equal("a fifo's", _facts(f"{d}/fifo"), facts["fifo"])
    append_file(f"{d}/dir/x", b"y")
    equal("a directory copied up for a child keeps its times", _facts(f"{d}/dir")[4], facts["dir"][4])
    st = os.stat(f"{d}/f")
    time.sleep(0.02)
    os.chmod(f"{d}/f", 0o600)
    after = os.stat(f"{d}/f")
    equal("chmod leaves mtime", after.st_mtime_ns, st.st_mtime_ns)
    check("chmod moves ctime", after.st_ctime_ns > st.st_ctime_ns)
    st = os.stat(d)
    time.sleep(0.02)
    write_file(f"{d}/new", b"")
    one = os.stat(d)
    check("a new name moves the directory's times", one.st_mtime_ns > st.st_mtime_ns and one.st_ctime_ns > st.st_ctime_ns)
    time.sleep(0.02)
    os.unlink(f"{d}/fifo2")
    two = os.stat(d)
    check("so does a name taken away", two.st_mtime_ns > one.st_mtime_ns)


def lower_times(d):
    for name in ("f", "g", "now", "dir-file"):
        write_file(f"{d}/{name}", b"x")
    os.mkdir(f"{d}/dir")


@case
def times(d):
    for value in (0, 1, -1, -2_000_000_000_000_000_001, 4_102_444_800_000_000_007, 9_000_000_000_000_000_009):
        os.utime(f"{d}/f", ns=(value, value))
        st = os.stat(f"{d}/f")
        equal(f"time {value}", (st.st_atime_ns, st.st_mtime_ns), (value, value))
    os.utime(f"{d}/dir", ns=(11, 22))
    equal("a directory's", (os.stat(f"{d}/dir").st_atime_ns, os.stat(f"{d}/dir").st_mtime_ns), (11, 22))
    before = time.time_ns() - 20_000_000
    os.utime(f"{d}/now")
    check("now", before <= os.stat(f"{d}/now").st_mtime_ns <= time.time_ns() + 20_000_000)
    timespec = struct.pack("qqqq", 0, (1 << 30) - 2, 5, 6)
    lib_call("utimensat", AT_FDCWD, os.fsencode(f"{d}/g"), timespec, 0)
    st = os.stat(f"{d}/g")
    equal("the access time left alone, the other set", st.st_mtime_ns, 5_000_000_006)
    fd = os.open(f"{d}/g", os.O_RDONLY)
    os.utime(fd, ns=(33, 44))
    equal("through a descriptor", os.fstat(fd).st_mtime_ns, 44)
    os.close(fd)


def lower_ownership(d):
    for name in ("f", "suid", "suid-root", "caps", "chown-suid", "trunc-suid"):
        write_file(f"{d}/{name}", b"program")
    for name in ("suid", "suid-root", "chown-suid", "trunc-suid"):
        os.chmod(f"{d}/{name}", 0o6777)
    if _real_root():
        os.setxattr(f"{d}/caps", "security.capability", bytes.fromhex("0000000200040000000000000000000000000000"))
    os.mkdir(f"{d}/sticky")
    os.chmod(f"{d}/sticky", 0o1777)
    write_file(f"{d}/sticky/root", b"r")
    write_file(f"{d}/secret", b"s")
    os.chmod(f"{d}/secret", 0o600)
    os.mkdir(f"{d}/open")
    os.chmod(f"{d}/open", 0o777)
    write_file(f"{d}/open/theirs", b"t")
    os.mkdir(f"{d}/closed")
    write_file(f"{d}/closed/f", b"f")
    os.chmod(f"{d}/closed", 0o700)


@case(as_root=True)
def ownership(d):
    os.chown(f"{d}/f", 1, 2)
    equal("chown", (os.stat(f"{d}/f").st_uid, os.stat(f"{d}/f").st_gid), (1, 2))
    os.chown(f"{d}/f", -1, 3)
    equal("of one of them", (os.stat(f"{d}/f").st_uid, os.stat(f"{d}/f").st_gid), (1, 3))
    mode = lambda name: os.stat(f"{d}/{name}").st_mode & 0o7777
    as_user(lambda: append_file(f"{d}/suid", b"x"))
    equal("a user's write takes setuid and setgid away", mode("suid"), 0o777)
    append_file(f"{d}/suid-root", b"x")
    equal("root's does not", mode("suid-root"), 0o6777)
    os.chown(f"{d}/chown-suid", 5, 5)
    equal("chown does", mode("chown-suid"), 0o777)
    as_user(lambda: os.truncate(f"{d}/trunc-suid", 2))
    equal("a user's truncate does", mode("trunc-suid"), 0o777)
    append_file(f"{d}/caps", b"x")
    fails("a write takes capabilities away", errno.ENODATA, os.getxattr, f"{d}/caps", "security.capability")
    fails("a user cannot read what is not his", errno.EACCES, as_user, lambda: len(read_file(f"{d}/secret")))
    fails("nor write a lower file", errno.EACCES, as_user, lambda: append_file(f"{d}/f", b"x"))
    fails("nor chmod it", errno.EPERM, as_user, lambda: os.chmod(f"{d}/f", 0o777))
    fails("nor chown it", errno.EPERM, as_user, lambda: os.chown(f"{d}/f", USER, USER))
    fails("nor look into a closed directory", errno.EACCES, as_user, lambda: os.stat(f"{d}/closed/f").st_size)
    fails("nor make a name where he may not", errno.EACCES, as_user, lambda: os.mkdir(f"{d}/x"))
    fails("nor delete another's file in a sticky directory", errno.EPERM, as_user, lambda: os.unlink(f"{d}/sticky/root"))
    fails("nor rename it", errno.EPERM, as_user, lambda: os.rename(f"{d}/sticky/root", f"{d}/sticky/x"))
    as_user(lambda: os.unlink(f"{d}/open/theirs"))
    equal("he may delete another's file where he may write", names(f"{d}/open"), [])
    as_user(lambda: write_file(f"{d}/sticky/mine", b"m"))
    st = os.stat(f"{d}/sticky/mine")
    equal("his file is his", (st.st_uid, st.st_gid), (USER, USER))
    as_user(lambda: os.mkdir(f"{d}/open/dir"))
    equal("his directory too", os.stat(f"{d}/open/dir").st_uid, USER)
    as_user(lambda: os.symlink("x", f"{d}/open/link"))
    equal("his link too", os.lstat(f"{d}/open/link").st_uid, USER)
    as_user(lambda: write_file(f"{d}/open/wheel", b""), USER, 0)
    st = os.stat(f"{d}/open/wheel")
    equal("a user of group 0 owns what he makes", (st.st_uid, st.st_gid), (USER, 0))
    fails("a user cannot make devices", errno.EPERM, as_user, lambda: os.mknod(f"{d}/open/dev", stat.S_IFCHR | 0o666, os.makedev(1, 3)))


def lower_creation(d):
    os.mkdir(f"{d}/group")
    if _real_root():
        os.chown(f"{d}/group", 0, 12)
    os.chmod(f"{d}/group", 0o2777)
    os.mkdir(f"{d}/plain")
    write_file(f"{d}/plain/gone", b"x")
    os.chmod(f"{d}/plain/gone", 0o4711)


@case
def creation(d):
    for mask in (0, 0o22, 0o77, 0o777, 0o137):
        old = os.umask(mask)
        os.close(os.open(f"{d}/plain/f{mask}", os.O_CREAT | os.O_WRONLY, 0o777))
        os.mkdir(f"{d}/plain/d{mask}", 0o777)
        os.mkfifo(f"{d}/plain/p{mask}", 0o777)
        os.umask(old)
        got = [os.stat(f"{d}/plain/{k}{mask}").st_mode & 0o7777 for k in "fdp"]
        equal(f"umask {mask:o}", got, [0o777 & ~mask] * 3)
    os.close(os.open(f"{d}/plain/bits", os.O_CREAT | os.O_WRONLY, 0o4755))
    equal("setuid at creation", os.stat(f"{d}/plain/bits").st_mode & 0o7777, 0o4755)
    os.unlink(f"{d}/plain/gone")
    os.close(os.open(f"{d}/plain/gone", os.O_CREAT | os.O_WRONLY, 0o640))
    equal("a name made again has nothing of the deleted one", os.stat(f"{d}/plain/gone").st_mode & 0o7777, 0o640)
    if not _real_root():
        return
    os.mkdir(f"{d}/new-group")
    os.chown(f"{d}/new-group", 0, 12)
    os.chmod(f"{d}/new-group", 0o2777)
    for top in ("group", "new-group"):
        as_user(lambda: write_file(f"{d}/{top}/f", b""))
        as_user(lambda: os.mkdir(f"{d}/{top}/d"))
        f, s = os.stat(f"{d}/{top}/f"), os.stat(f"{d}/{top}/d")
        equal(f"{top}: a file takes the directory's group", (f.st_uid, f.st_gid, f.st_mode & 0o7777), (USER, 12, 0o644))
        equal(f"{top}: a directory takes group and setgid", (s.st_gid, s.st_mode & 0o7777), (12, 0o2755))


def lower_attributes(d):
    write_file(f"{d}/f", b"x")
    os.setxattr(f"{d}/f", "user.low", b"low")
    os.mkdir(f"{d}/dir")
    os.setxattr(f"{d}/dir", "user.low", b"low")
    os.symlink("f", f"{d}/link")


@case
def attributes(d):
    write_file(f"{d}/new", b"x")
    for name in ("f", "dir", "new"):
        p = f"{d}/{name}"
        if name != "new":
            equal(f"{name}: the lower's", os.getxattr(p, "user.low"), b"low")
        works(f"{name}: set", os.setxattr, p, "user.a", b"1")
        equal(f"{name}: get", os.getxattr(p, "user.a"), b"1")
        fails(f"{name}: CREATE of one that is there", errno.EEXIST, os.setxattr, p, "user.a", b"2", XATTR_CREATE)
        fails(f"{name}: REPLACE of one that is not", errno.ENODATA, os.setxattr, p, "user.none", b"2", XATTR_REPLACE)
        works(f"{name}: REPLACE", os.setxattr, p, "user.a", b"22", XATTR_REPLACE)
        works(f"{name}: an empty value", os.setxattr, p, "user.empty", b"")
        equal(f"{name}: is empty", os.getxattr(p, "user.empty"), b"")
        works(f"{name}: any bytes", os.setxattr, p, "user.bytes", bytes(range(256)))
        equal(f"{name}: come back", os.getxattr(p, "user.bytes"), bytes(range(256)))
        works(f"{name}: 3000 bytes", os.setxattr, p, "user.large", b"v" * 3000)
        equal(f"{name}: come back", os.getxattr(p, "user.large"), b"v" * 3000)
        works(f"{name}: remove", os.removexattr, p, "user.a")
        fails(f"{name}: it is gone", errno.ENODATA, os.getxattr, p, "user.a")
        fails(f"{name}: remove again", errno.ENODATA, os.removexattr, p, "user.a")
        fails(f"{name}: a name too long", errno.ERANGE, os.setxattr, p, "user." + "n" * 251, b"")
        fails(f"{name}: a value too large", (errno.E2BIG, errno.ENOSPC), os.setxattr, p, "user.huge", b"v" * 65537)
        fails(f"{name}: a name space that is none", errno.EOPNOTSUPP, os.setxattr, p, "nonsense.x", b"")
        want = sorted(["user.empty", "user.bytes", "user.large"] + (["user.low"] if name != "new" else []))
        equal(f"{name}: list", sorted(n for n in os.listxattr(p) if n.startswith("user.")), want)
        size = lib_call("getxattr", os.fsencode(p), b"user.large", ctypes.create_string_buffer(10), ctypes.c_size_t(10))
        equal(f"{name}: too small a buffer", (size, ctypes.get_errno()), (-1, errno.ERANGE))
    os.removexattr(f"{d}/f", "user.low")
    fails("the lower's can be removed", errno.ENODATA, os.getxattr, f"{d}/f", "user.low")
    fails("user.* on a symbolic link", errno.EPERM, os.setxattr, f"{d}/link", "user.a", b"", follow_symlinks=False)
    if _real_root():
        works("trusted.* by root", os.setxattr, f"{d}/f", "trusted.mine", b"t")
        equal("come back", os.getxattr(f"{d}/f", "trusted.mine"), b"t")
        fails("not by a user", errno.EPERM, as_user, lambda: os.setxattr(f"{d}/f", "trusted.mine", b"u"))
        works("security.*", os.setxattr, f"{d}/f", "security.mine", b"s")
        works("on a symbolic link", os.setxattr, f"{d}/link", "trusted.a", b"l", follow_symlinks=False)
        equal("come back", os.getxattr(f"{d}/link", "trusted.a", follow_symlinks=False), b"l")


def acl(*entries):
    """The value of a POSIX ACL attribute from (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", t, p, i) for t, p, i in entries)


NOBODY_ID = 0xFFFFFFFF
ACL_ACCESS, ACL_DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER_TAG, GROUP_OBJ, GROUP_TAG, MASK, OTHER = 1, 2, 4, 8, 16, 32


def lower_acls(d):
    write_file(f"{d}/f", b"secret")
    os.chmod(f"{d}/f", 0o600)
    os.mkdir(f"{d}/dir")
    os.chmod(f"{d}/dir", 0o755)
    entries = [(USER_OBJ, 7, NOBODY_ID), (USER_TAG, 7, USER), (GROUP_OBJ, 5, NOBODY_ID), (MASK, 7, NOBODY_ID), (OTHER, 0, NOBODY_ID)]
    os.setxattr(f"{d}/dir", ACL_DEFAULT, acl(*entries))
    write_file(f"{d}/given", b"given")
    os.setxattr(
        f"{d}/given",
        ACL_ACCESS,
        acl((USER_OBJ, 6, NOBODY_ID), (USER_TAG, 6, USER), (GROUP_OBJ, 0, NOBODY_ID), (MASK, 6, NOBODY_ID), (OTHER, 0, NOBODY_ID)),
    )


@case(as_root=True)
def acls(d):
    equal("a lower ACL lets the user in", as_user(lambda: len(read_file(f"{d}/given"))), 5)
    as_user(lambda: append_file(f"{d}/given", b"!"))
    equal("and write; the copy keeps it", as_user(lambda: len(read_file(f"{d}/given"))), 6)
    fails("no one else", errno.EACCES, as_user, lambda: len(read_file(f"{d}/given")), USER + 1, USER + 1)
    fails("no ACL, no entry", errno.EACCES, as_user, lambda: len(read_file(f"{d}/f")))
    value = acl((USER_OBJ, 6, NOBODY_ID), (USER_TAG, 4, USER), (GROUP_OBJ, 0, NOBODY_ID), (MASK, 4, NOBODY_ID), (OTHER, 0, NOBODY_ID))
    works("set", os.setxattr, f"{d}/f", ACL_ACCESS, value)
    equal("get", os.getxattr(f"{d}/f", ACL_ACCESS), value)
    equal("the mode shows the mask", os.stat(f"{d}/f").st_mode & 0o777, 0o640)
    equal("now he may read", as_user(lambda: len(read_file(f"{d}/f"))), 6)
    fails("not write", errno.EACCES, as_user, lambda: append_file(f"{d}/f", b""))
    os.chmod(f"{d}/f", 0o600)
    fails("chmod takes the mask away", errno.EACCES, as_user, lambda: len(read_file(f"{d}/f")))
    os.removexattr(f"{d}/f", ACL_ACCESS)
    fails("removed", errno.ENODATA, os.getxattr, f"{d}/f", ACL_ACCESS)
    os.mkdir(f"{d}/new")
    os.setxattr(f"{d}/new", ACL_DEFAULT, os.getxattr(f"{d}/dir", ACL_DEFAULT))
    for top in ("dir", "new"):
        old = os.umask(0o77)
        write_file(f"{d}/{top}/f", b"x", 0o666)
        os.mkdir(f"{d}/{top}/sub", 0o777)
        os.umask(old)
        equal(f"{top}: a default ACL overrides the umask", os.stat(f"{d}/{top}/f").st_mode & 0o777, 0o660)
        equal(f"{top}: and is inherited", os.getxattr(f"{d}/{top}/sub", ACL_DEFAULT), os.getxattr(f"{d}/dir", ACL_DEFAULT))
        want = acl((USER_OBJ, 6, NOBODY_ID), (USER_TAG, 7, USER), (GROUP_OBJ, 5, NOBODY_ID), (MASK, 6, NOBODY_ID), (OTHER, 0, NOBODY_ID))
        equal(f"{top}: the file's own", os.getxattr(f"{d}/{top}/f", ACL_ACCESS), want)


def lower_flags(d):
    for name in ("f", "append", "ro"):
        write_file(f"{d}/{name}", b"flags")
    os.mkdir(f"{d}/dir")


@case(as_root=True)
def flags(d):
    write_file(f"{d}/new", b"flags")
    for name in ("new", "f", "dir"):
        fd = os.open(f"{d}/{name}", os.O_RDONLY)
        before = works(f"{name}: GETFLAGS", get_flags, fd)
        if before is not None:
            works(f"{name}: SETFLAGS", set_flags, fd, before | FS_NODUMP)
            equal(f"{name}: are set", get_flags(fd) & FS_NODUMP, FS_NODUMP)
            works(f"{name}: cleared", set_flags, fd, before)
            equal(f"{name}: are cleared", get_flags(fd) & FS_NODUMP, 0)
        os.close(fd)
    equal("data survived", read_file(f"{d}/f"), b"flags")
    fd = os.open(f"{d}/append", os.O_RDONLY)
    before = get_flags(fd)
    works("append-only", set_flags, fd, before | FS_APPEND)
    fails("cannot be overwritten", errno.EPERM, os.open, f"{d}/append", os.O_WRONLY)
    fails("nor deleted", errno.EPERM, os.unlink, f"{d}/append")
    works("can be appended to", append_file, f"{d}/append", b"+")
    works("cleared", set_flags, fd, before)
    works("immutable", set_flags, fd, before | FS_IMMUTABLE)
    fails("cannot be written", errno.EPERM, os.open, f"{d}/append", os.O_WRONLY | os.O_APPEND)
    fails("nor renamed", errno.EPERM, os.rename, f"{d}/append", f"{d}/x")
    fails("nor changed", errno.EPERM, os.chmod, f"{d}/append", 0o777)
    works("cleared", set_flags, fd, before)
    os.close(fd)
    works("and deleted", os.unlink, f"{d}/append")
    fd = os.open(f"{d}/ro", os.O_RDONLY)
    fails("an ioctl that is none", errno.ENOTTY, fcntl.ioctl, fd, 0x5401, bytes(60))
    fails("a user may not set another's", (errno.EPERM, errno.EACCES), as_user, lambda: set_flags(os.open(f"{d}/ro", os.O_RDONLY), FS_NODUMP))
    os.close(fd)


def lower_special(d):
    os.mkfifo(f"{d}/fifo")
    listener = socket.socket(socket.AF_UNIX)
    at = os.getcwd()
    os.chdir(d)
    listener.bind("socket")
    os.chdir(at)
    listener.close()
    if _real_root():
        os.mknod(f"{d}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(f"{d}/block", stat.S_IFBLK | 0o600, os.makedev(7, 200))


@case
def special(d):
    for name in ("fifo", "new-fifo"):
        if name == "new-fifo":
            os.mkfifo(f"{d}/{name}", 0o600)
        reader = os.open(f"{d}/{name}", os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(f"{d}/{name}", os.O_WRONLY)
        os.write(writer, b"through")
        equal(f"{name}: carries data", os.read(reader, 10), b"through")
        os.close(reader)
        os.close(writer)
    at = os.getcwd()
    os.chdir(d)
    listener = socket.socket(socket.AF_UNIX)
    works("a socket is made", listener.bind, "new-socket")
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    works("and connected to", client.connect, "new-socket")
    fails("nobody listens at the lower's", errno.ECONNREFUSED, socket.socket(socket.AF_UNIX).connect, "socket")
    os.chdir(at)
    os.chmod(f"{d}/socket", 0o600)
    equal("a lower socket can be copied up", stat.filemode(os.stat(f"{d}/socket").st_mode), "srw-------")
    os.chmod(f"{d}/fifo", 0o600)
    equal("a lower fifo too", stat.filemode(os.stat(f"{d}/fifo").st_mode), "prw-------")
    if _real_root():
        write_file(f"{d}/null", b"into nothing")
        equal("a lower device works", read_file(f"{d}/null"), b"")
        os.mknod(f"{d}/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        fd = os.open(f"{d}/zero", os.O_RDONLY)
        equal("a new device works", os.read(fd, 3), bytes(3))
        os.close(fd)
        os.chmod(f"{d}/block", 0o640)
        equal("a block device keeps its number", os.stat(f"{d}/block").st_rdev, os.makedev(7, 200))
        os.unlink(f"{d}/null")
        fails("a device can be deleted", errno.ENOENT, os.stat, f"{d}/null")


def lower_handles(d):
    for name in ("f", "copied", "deleted", "linked", "reused"):
        write_file(f"{d}/{name}", b"by handle")
    os.makedirs(f"{d}/dir/sub")
    write_file(f"{d}/dir/sub/leaf", b"by handle")
    os.link(f"{d}/linked", f"{d}/dir/link")


@case(as_root=True)
def handles(d):
    libc = ctypes.CDLL(None, use_errno=True)

    def handle_of(path):
        handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128)), ctypes.c_int()
        got = libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount), 0)
        return handle if got == 0 else ctypes.get_errno()

    def by_handle(handle, flags=os.O_RDONLY):
        """What the handle leads to, or the errno."""
        fd = libc.open_by_handle_at(at, handle, flags)
        if fd < 0:
            return ctypes.get_errno()
        data = os.read(fd, 20) if stat.S_ISREG(os.fstat(fd).st_mode) else sorted(os.listdir(fd))
        os.close(fd)
        return data

    # A descriptor of the mount, which keeps nothing that is looked for.
    at = os.open(os.path.dirname(os.path.abspath(d)), os.O_RDONLY)
    names = {n: f"{d}/{n}" for n in ("f", "copied", "linked", "dir/link", "deleted", "dir", "dir/sub", "dir/sub/leaf")}
    write_file(f"{d}/new", b"by handle")
    names["new"] = f"{d}/new"
    if not isinstance(handle_of(f"{d}/f"), ctypes.Array):
        return equal("name_to_handle_at", handle_of(f"{d}/f"), 0)
    got = {name: handle_of(path) for name, path in names.items()}
    want = {name: b"by handle" for name in names} | {"dir": ["link", "sub"], "dir/sub": ["leaf"]}
    equal("open_by_handle_at", {n: by_handle(h) for n, h in got.items()}, want)
    drop_caches()
    equal("after forget", {n: by_handle(h) for n, h in got.items()}, want)
    append_file(f"{d}/copied", b"!")
    os.chmod(f"{d}/linked", 0o600)
    os.unlink(f"{d}/deleted")
    os.rename(f"{d}/dir/sub/leaf", f"{d}/moved")
    if not NO_REDIRECT:
        os.rename(f"{d}/dir/sub", f"{d}/sub")
    want |= {"copied": b"by handle!", "deleted": errno.ESTALE, "dir/sub": []}
    want["dir"] = ["link", "sub"] if NO_REDIRECT else ["link"]
    drop_caches()
    equal("after copy-up, rename, unlink and forget", {n: by_handle(h) for n, h in got.items()}, want)
    fd = libc.open_by_handle_at(at, got["f"], os.O_WRONLY)
    os.write(fd, b"WRITTEN")
    os.close(fd)
    equal("what is written by handle is read by name", read_file(f"{d}/f"), b"WRITTENle")
    # A number that is used again is another object.
    for n in range(50):
        write_file(f"{d}/turn", b"%d" % n)
        old, number = handle_of(f"{d}/turn"), os.stat(f"{d}/turn").st_ino
        os.unlink(f"{d}/turn")
        drop_caches()
        write_file(f"{d}/turn", b"another")
        if os.stat(f"{d}/turn").st_ino == number:
            break
    equal("a handle of a deleted file leads to no other of its number", by_handle(old), errno.ESTALE)
    os.unlink(f"{d}/turn")
    os.close(at)


def lower_crowd(d):
    for n in range(200):
        write_file(f"{d}/f{n}", b"%d" % n)
    os.mkdir(f"{d}/dir")


@case
def crowd(d):
    """Eight processes at once on one directory."""
    children = []
    for worker in range(8):
        pid = os.fork()
        if pid == 0:
            code = 0
            try:
                chance = random.Random(worker)
                for turn in range(150):
                    n = chance.randrange(200)
                    match chance.randrange(7):
                        case 0:
                            attempt(append_file, f"{d}/f{n}", b"+")
                        case 1:
                            attempt(os.unlink, f"{d}/f{n}")
                        case 2:
                            attempt(os.rename, f"{d}/f{n}", f"{d}/f{chance.randrange(200)}")
                        case 3:
                            attempt(os.link, f"{d}/f{n}", f"{d}/f{chance.randrange(200)}")
                        case 4:
                            names(d)
                        case 5:
                            attempt(renameat2, f"{d}/f{n}", f"{d}/f{chance.randrange(200)}", RENAME_EXCHANGE)
                        case 6:
                            write_file(f"{d}/w{worker}-{turn}", b"mine")
                            code |= read_file(f"{d}/w{worker}-{turn}") != b"mine"
            except BaseException as error:
                print(repr(error))
                code = 1
            os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    equal("no one met a surprise", codes, [0] * 8)
    listed = names(d)
    missing = [n for n in listed if attempt(os.lstat, f"{d}/{n}")]
    equal("every listed name can be looked up", missing, [])
    # What is left is one of the numbers, with + at its end, or what a worker wrote.
    odd = []
    for name in listed:
        if name == "dir":
            continue
        data = read_file(f"{d}/{name}").rstrip(b"+")
        if data != b"mine" and not (data.isdigit() and int(data) < 200):
            odd.append((name, data[:20]))
    equal("no data is mixed up", odd, [])
    if _real_root():
        before = {n: (os.lstat(f"{d}/{n}").st_ino, os.lstat(f"{d}/{n}").st_nlink) for n in listed}
        drop_caches()
        after = {n: (os.lstat(f"{d}/{n}").st_ino, os.lstat(f"{d}/{n}").st_nlink) for n in names(d)}
        differ = {n: (before.get(n), after.get(n)) for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
        equal("the same names, numbers and link counts after forget", differ, {})


# ---- running ---------------------------------------------------------------------------------------------------------


def _real_root():
    if os.geteuid() != 0:
        return False
    if not os.path.exists("/proc/self/uid_map"):
        return True
    with open("/proc/self/uid_map") as file:
        return file.read().split()[:3] == ["0", "0", "4294967295"]


def main():
    os.umask(0o022)
    sys.setrecursionlimit(5000)
    match sys.argv[1:]:
        case ["list"]:
            print("\n".join(CASES))
        case ["prepare", lower, *chosen]:
            for name in chosen or CASES:
                os.mkdir(f"{lower}/{name}")
                if CASES[name][1] and not _real_root():
                    continue
                globals()[f"lower_{name}"](f"{lower}/{name}")
        case ["run", top, *chosen]:
            for name in chosen or CASES:
                function, as_root = CASES[name]
                if as_root and not _real_root():
                    print(f"# {name}: only for real root")
                    continue
                began = time.monotonic()
                try:
                    function(os.path.abspath(f"{top}/{name}"))
                except OSError as error:
                    import traceback

                    line = traceback.extract_tb(error.__traceback__)[1].lineno
                    check(f"{name} runs to its end", False, f"line {line}: {errno.errorcode.get(error.errno)} {error}")
                print(f"# {name}: {time.monotonic() - began:.1f} s")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
