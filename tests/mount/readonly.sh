#!/bin/bash
# The lower branches are never changed by one byte, whatever is done through the mount: every way to open, map and change, and chance.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=150

# Every read would move an access time here, if the daemon read through a writable mount.
loop_fs ext4 256M "$T/disk" && mount -o remount,strictatime "$T/disk" || fail "no disk for the lower"
mkdir disk/{one,two} upper ufs
python <<'EOF2'
for branch in ("one", "two"):
    top = f"disk/{branch}"
    for n in range(60):
        write_file(f"{top}/{branch}{n}", pattern(n, 500 * (n % 7) + (70000 if n % 10 == 0 else 0)))
    for n in range(10):
        os.mkdir(f"{top}/dir{n}")
        write_file(f"{top}/dir{n}/{branch}", b"x" * 5000)
        os.symlink(f"dir{n}/{branch}", f"{top}/{branch}link{n}")
    os.link(f"{top}/{branch}1", f"{top}/{branch}hard")
    os.mkfifo(f"{top}/{branch}fifo")
    os.setxattr(f"{top}/{branch}2", "user.a", b"b")
    os.chmod(f"{top}/{branch}3", 0o4755)
EOF2
# The listing does not move what it lists, but for symbolic links, whose access time it leaves out.
tree disk exact >lower.before
check "mounts" union -o cow,allow_other,dev,suid disk/one=RO:disk/two=RO:upper=RW "$T/ufs"
tree ufs >/dev/null
tree disk exact >lower.after
same "reading everything leaves no access time behind" lower.before lower.after

python <<'EOF2'
import functools
import itertools
import random

top = "ufs"
files = sorted(f"{at}/{n}" for at, _, fs in os.walk(top) for n in fs if os.path.isfile(f"{at}/{n}") and not os.path.islink(f"{at}/{n}"))
access = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_ACCMODE]
extra = [os.O_TRUNC, os.O_APPEND, os.O_CREAT, os.O_DIRECT, os.O_SYNC, os.O_NOATIME, os.O_NONBLOCK, os.O_PATH, os.O_CREAT | os.O_EXCL]
chance = random.Random(7)


def use(fd):
    """Tries to change a file through a descriptor in every way there is."""
    junk = b"JUNK" * 1200
    for call in (
        lambda: os.pwrite(fd, junk, chance.randrange(9000)),
        lambda: os.write(fd, junk),
        lambda: os.ftruncate(fd, chance.randrange(9000)),
        lambda: fallocate(fd, 0, 0, 20000),
        lambda: fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 4096),
        lambda: fallocate(fd, FALLOC_ZERO, 0, 4096),
        lambda: os.fchmod(fd, 0o777),
        lambda: os.fchown(fd, 1, 1),
        lambda: os.utime(fd, ns=(1, 2)),
        lambda: os.setxattr(fd, "user.junk", b"junk"),
        lambda: set_flags(fd, FS_NODUMP),
        lambda: os.copy_file_range(fd, fd, 100, 0, 5000),
    ):
        attempt(call)
    for flags, prot in itertools.product((mmap.MAP_SHARED, mmap.MAP_PRIVATE), (3, 1, 2)):
        try:
            with mmap.mmap(fd, 4096, flags, prot) as map:
                if prot & 2:
                    map[0:4] = b"JUNK"
                    map.flush()
        except (OSError, ValueError, TypeError):
            pass
    attempt(os.read, fd, 100)
    # Once more by its /proc name, with more rights than the descriptor has.
    for flag in (os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        try:
            again = os.open(f"/proc/self/fd/{fd}", flag)
            os.write(again, b"JUNK")
            os.close(again)
        except OSError:
            pass


counted = 0
chosen = iter(itertools.cycle(files))
for mode in access:
    for count in range(4):
        for flags in itertools.combinations(extra, count):
            name = next(chosen)
            try:
                fd = os.open(name, mode | functools.reduce(int.__or__, flags, 0), 0o644)
            except OSError:
                continue
            use(fd)
            os.close(fd)
            counted += 1
check("opened in many ways", counted > 200, counted)
EOF2
tree disk exact >lower.after
same "no way of opening reaches the lower" lower.before lower.after

check "a fresh upper" sh -c 'umount ufs && mkdir upper2'
no_daemon_left
check "mounts" union -o cow,allow_other,dev,suid disk/one=RO:disk/two=RO:upper2=RW "$T/ufs"
python <<'EOF2'
import random
import shutil

chance = random.Random(11)
top = "ufs"
old = []


def anything():
    at = chance.choice([top, top, *(f"{top}/dir{n}" for n in range(10))])
    try:
        return f"{at}/{chance.choice(os.listdir(at) + ['new'])}"
    except (OSError, IndexError):
        return f"{at}/new"


def held():
    """A descriptor, often opened long ago on what was then a lower file."""
    if len(old) < 40 or chance.random() < 0.3:
        old.append(os.open(anything(), chance.choice([os.O_RDONLY, os.O_RDWR]) | os.O_NONBLOCK))
    return chance.choice(old)


def rmtree(path):
    """Seldom, and never of a fifo: it would wait for a writer."""
    if chance.random() < 0.1 and stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)


def write(flags, data):
    fd = os.open(anything(), os.O_WRONLY | os.O_NONBLOCK | flags, 0o644)
    os.write(fd, data)
    os.close(fd)


deeds = [
    lambda: os.unlink(anything()),
    lambda: os.rmdir(anything()),
    lambda: rmtree(anything()),
    lambda: os.mkdir(anything()),
    lambda: write(os.O_CREAT | os.O_TRUNC, b"new" * 100),
    lambda: write(os.O_APPEND, b"more"),
    lambda: os.truncate(anything(), chance.randrange(10000)),
    lambda: os.rename(anything(), anything()),
    lambda: renameat2(anything(), anything(), chance.randrange(8)),
    lambda: os.link(anything(), anything(), follow_symlinks=False),
    lambda: os.symlink(anything(), anything()),
    lambda: os.mknod(anything(), chance.choice([stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK]) | 0o644),
    lambda: os.chmod(anything(), chance.randrange(0o10000)),
    lambda: os.chown(anything(), chance.randrange(5), chance.randrange(5), follow_symlinks=False),
    lambda: os.utime(anything(), ns=(chance.randrange(10**18), chance.randrange(10**18)), follow_symlinks=False),
    lambda: os.setxattr(anything(), "user.x", b"y" * chance.randrange(2000), follow_symlinks=False),
    lambda: os.removexattr(anything(), "user.a", follow_symlinks=False),
    lambda: os.pwrite(held(), b"old", 10),
    lambda: os.ftruncate(held(), 77),
    lambda: os.fchmod(held(), 0o600),
    lambda: fallocate(held(), chance.randrange(64), 0, 8192),
    lambda: os.copy_file_range(held(), held(), 1000, 0, 0),
    lambda: os.sendfile(held(), held(), 0, 1000),
    lambda: mmap.mmap(held(), 4096).__setitem__(slice(0, 4), b"MAPS"),
]
done = 0
for _ in range(6000):
    try:
        chance.choice(deeds)()
        done += 1
    except (OSError, ValueError, IndexError):
        pass
check("much was done", done > 1000, done)
EOF2
tree disk exact >lower.after
same "chance does not reach the lower" lower.before lower.after
check "unmounts" unmount "$T/ufs"
tree disk exact >lower.after
same "nor does what was still unwritten" lower.before lower.after
finish
