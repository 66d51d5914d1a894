"""What the python parts of the shell tests stand on: counted checks, syscalls that python lacks, and the tree listing.

Run as a program, `lib.py tree DIR [exact] [without NAME...]` prints one line for each object below DIR, contents and metadata, without changing
an access time. `exact` adds what only an untouched tree keeps: inode numbers, ctime, atime, and the sizes of directories.
"""

# No module here may need /proc or /dev: the tests run where neither is.
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import struct
import sys
import threading
import time

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE, FALLOC_ZERO, FALLOC_INSERT, FALLOC_UNSHARE = 1, 2, 8, 16, 32, 64
O_TMPFILE = os.O_TMPFILE
AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = -100, 0x1000, 0x400
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_NODUMP, FS_NOATIME, FS_APPEND, FS_IMMUTABLE = 0x40, 0x80, 0x20, 0x10


# ---- checks ----------------------------------------------------------------------------------------------------------


def _report(line):
    print(line, flush=True)
    try:
        os.write(9, (line.splitlines()[0] + "\n").encode("utf-8", "replace"))
    except OSError:
        pass  # Run by hand, without the shell's descriptor.


def check(name, good, detail=""):
    """Counts one check; `detail` says what was seen instead."""
    _report(f"ok - {name}" if good else f"FAIL - {name}: {detail}")
    return good


def equal(name, got, want):
    return check(name, got == want, f"got {_short(got)}, expected {_short(want)}")


def _short(value):
    text = repr(value)
    return text if len(text) < 300 else text[:300] + "..."


def fails(name, wanted, call, *args, **kwargs):
    """The call fails with the errno `wanted` (or one of a tuple)."""
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    words = " or ".join(errno.errorcode[w] for w in wanted)
    try:
        result = call(*args, **kwargs)
    except OSError as error:
        return check(name, error.errno in wanted, f"got {errno.errorcode.get(error.errno, error.errno)}, expected {words}")
    return check(name, False, f"succeeded with {_short(result)}, expected {words}")


def works(name, call, *args, **kwargs):
    """The call does not fail; gives back its value, or None."""
    try:
        result = call(*args, **kwargs)
    except OSError as error:
        check(name, False, f"{errno.errorcode.get(error.errno)}: {error}")
        return None
    check(name, True)
    return result


def attempt(call, *args, **kwargs):
    """Errno of the call, 0 if it worked."""
    try:
        call(*args, **kwargs)
        return 0
    except OSError as error:
        return error.errno


# ---- syscalls --------------------------------------------------------------------------------------------------------


def _checked(result):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def renameat2(old, new, flags):
    return _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)))


def fallocate(fd, mode, offset, length):
    return _checked(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def mknod_in(path, mode, rdev=0):
    os.mknod(path, mode, rdev)


def link_fd(fd, path):
    """Gives a name to an O_TMPFILE file. Not by AT_EMPTY_PATH: that needs CAP_DAC_READ_SEARCH."""
    return _checked(
        _libc.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW)
    )


def get_flags(fd):
    return struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, struct.pack("l", 0)))[0]


def set_flags(fd, flags):
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", flags))


class _Dirent(ctypes.Structure):
    _fields_ = [
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    ]


_libc.fdopendir.restype = ctypes.c_void_p
_libc.fdopendir.argtypes = [ctypes.c_int]
_libc.readdir.restype = ctypes.POINTER(_Dirent)
for _call in ("readdir", "telldir", "seekdir", "rewinddir", "closedir"):
    getattr(_libc, _call).argtypes = [ctypes.c_void_p] + ([ctypes.c_long] if _call == "seekdir" else [])
_libc.telldir.restype = ctypes.c_long


class Directory:
    """opendir(3) and friends, for d_ino, d_type, telldir and seekdir."""

    def __init__(self, path):
        self.stream = _libc.fdopendir(os.open(path, os.O_RDONLY | os.O_DIRECTORY))

    def read(self):
        """(name, inode number, type), or None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir(self.stream)
        if not entry:
            if ctypes.get_errno():
                raise OSError(ctypes.get_errno(), "readdir")
            return None
        return entry.contents.d_name, entry.contents.d_ino, entry.contents.d_type

    def rest(self):
        entries = []
        while (entry := self.read()) is not None:
            entries.append(entry)
        return entries

    def tell(self):
        return _libc.telldir(self.stream)

    def seek(self, place):
        _libc.seekdir(self.stream, place)

    def rewind(self):
        _libc.rewinddir(self.stream)

    def close(self):
        _libc.closedir(self.stream)


# ---- files -----------------------------------------------------------------------------------------------------------


def write_file(path, data, mode=0o644):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


def append_file(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def extents(fd):
    """Data extents of a file as SEEK_DATA and SEEK_HOLE tell them."""
    found, at, end = [], 0, os.fstat(fd).st_size
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


def drop_caches():
    """Makes the kernel forget dentries and inodes, where there is a /proc to ask it by."""
    if not os.path.exists("/proc/sys/vm/drop_caches"):
        return
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")


def pattern(seed, size):
    """`size` bytes that differ everywhere and between seeds."""
    block = hashlib.sha512(str(seed).encode()).digest() * 16
    numbers = range((size + 1023) // 1024)
    return b"".join(struct.pack("<Q", n) + block[8:] for n in numbers)[:size]


def path_below(directory, names):
    """Walks down by names, creating what is missing; gives a descriptor. For paths longer than PATH_MAX."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for name in names:
        try:
            os.mkdir(name, dir_fd=fd)
        except FileExistsError:
            pass
        down = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = down
    return fd


# ---- the tree listing ------------------------------------------------------------------------------------------------

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


_ZEROS = bytes(4096)


def _digest(name, at):
    """Hash of the contents; blocks of zeros count nothing, so that a hole and zeros are equal and a hole costs no time."""
    digest = hashlib.sha256()
    if os.geteuid() != 0 and not os.access(name, os.R_OK, dir_fd=at):
        return "unreadable"
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | _no_atime, dir_fd=at)
    try:
        at = 0
        for start, end in extents(fd):
            at = max(at, start - start % 4096)
            end += -end % 4096
            while at < end and (data := os.pread(fd, min(1 << 20, end - at), at)):
                for block in range(0, len(data), 4096):
                    if (piece := data[block : block + 4096]) != _ZEROS:
                        digest.update(b"%d:" % (at + block) + piece)
                at += len(data)
    finally:
        os.close(fd)
    return digest.hexdigest()[:32]


def _xattrs(name, at):
    path = b"/proc/self/fd/%d/%s" % (at, name)
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
        return " ".join(f"{n}={os.getxattr(path, n, follow_symlinks=False).hex()}" for n in names)
    except OSError as error:
        return "" if error.errno == errno.ENOTSUP else f"xattr:{errno.errorcode[error.errno]}"


def _line(shown, name, at, exact):
    st = os.stat(name, dir_fd=at, follow_symlinks=False)
    kind = stat.S_IFMT(st.st_mode)
    is_dir = kind == stat.S_IFDIR
    fields = [_TYPES[kind], f"{st.st_mode & 0o7777:04o}", f"{st.st_uid}:{st.st_gid}", f"m{st.st_mtime_ns}"]
    if exact or not is_dir:
        fields += [f"n{st.st_nlink}", f"s{st.st_size}"]
    if exact:
        fields += [f"i{st.st_ino}", f"c{st.st_ctime_ns}"]
        # The target of a symbolic link cannot be read without touching its access time.
        fields += [] if kind == stat.S_IFLNK else [f"a{st.st_atime_ns}"]
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        fields.append(f"r{os.major(st.st_rdev)}:{os.minor(st.st_rdev)}")
    if kind == stat.S_IFLNK:
        fields.append(repr(os.readlink(name, dir_fd=at)))
    if kind == stat.S_IFREG:
        fields.append(_digest(name, at))
    fields.append(_xattrs(name, at))
    return f"{shown!r} " + " ".join(fields).rstrip()


_no_atime = os.O_NOATIME if os.geteuid() == 0 else 0


def tree(top, exact=False, skip=()):
    """Lines of the listing, sorted by path. `skip` holds names left out at any depth."""
    lines = []

    def walk(fd, shown):
        for name in sorted(os.fsencode(n) for n in os.listdir(fd)):
            if name in skip:
                continue
            path = shown + b"/" + name
            lines.append(_line(path, name, fd, exact))
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                down = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | _no_atime, dir_fd=fd)
                walk(down, path)
                os.close(down)

    sys.setrecursionlimit(20000)
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | _no_atime)
    lines.append(_line(b".", b".", fd, exact))
    walk(fd, b"")
    os.close(fd)
    return lines


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] != "tree":
        sys.exit("usage: lib.py tree DIR [exact] [without NAME...]")
    left_out = sys.argv[sys.argv.index("without") + 1 :] if "without" in sys.argv else []
    sys.stdout.write("\n".join(tree(sys.argv[2], "exact" in sys.argv[3:4], [os.fsencode(n) for n in left_out])) + "\n")
