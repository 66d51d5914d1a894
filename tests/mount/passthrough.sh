#!/bin/bash
# What the kernel's own hands on file data may not break: old and new descriptors and maps over a copy-up, followed logs, page
# caches, set-id bits, one page-cache copy for all unions, cached listings, requests beside large copy-ups.
# timeout: 600
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=150

mkdir -p lower upper ufs m{1,2,3,4} u{1,2,3,4}

# fresh OPTION...: the union of a lower that python fills by lower.py, mounted anew with these options.
fresh() {
	rm -rf upper && mkdir upper
	check "mounts with ${*:-no option}" union -o "cow,allow_other,default_permissions${1:+,$1}" lower=RO:upper=RW "$T/ufs"
}
ends() {
	check "unmounts" unmount "$T/ufs"
	no_daemon_left
}

# ---- a lower file is open while it is written --------------------------------------------------------------------------

cat >"$T/.test/old.py" <<'EOF'
"""Every change by every way of holding the file, on a file of its own each."""
import itertools
import subprocess

KINDS = {
    "binary": lambda n: b"\0BIN" + pattern(n, 200_000),
    "text": lambda n: (b"line of text\n" * 20_000)[:200_000],
    "small": lambda n: b"\0bin" + pattern(n, 9_000),
    "linked": lambda n: b"\0BIN" + pattern(n, 150_000),
}


def store(path, new, flags=os.O_WRONLY):
    fd = os.open(path, flags)
    os.pwrite(fd, new, 0)
    os.close(fd)


def by_map(path):
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 4096) as map:
        map[0:7] = b"CHANGED"
        map.flush()
    os.close(fd)


def rename_over(path):
    write_file(path + ".new", b"CHANGED" + b"r" * 1000)
    os.rename(path + ".new", path)


def cut_and_write(path):
    os.truncate(path, 10)
    store(path, b"CHANGED")


def appended(path):
    append_file(path, b"GROWN")


# name: (the change, the content after it, whether old descriptors are those of the same file)
CHANGES = {
    "write": (lambda path: store(path, b"CHANGED"), lambda old: b"CHANGED" + old[7:], True),
    "rdwr": (lambda path: store(path, b"CHANGED", os.O_RDWR), lambda old: b"CHANGED" + old[7:], True),
    "map": (by_map, lambda old: b"CHANGED" + old[7:], True),
    "append": (appended, lambda old: old + b"GROWN", True),
    "cut": (lambda path: store(path, b"CHANGED", os.O_WRONLY | os.O_TRUNC), lambda old: b"CHANGED", True),
    "create": (lambda path: write_file(path, b"CHANGED"), lambda old: b"CHANGED", True),
    "truncate": (cut_and_write, lambda old: b"CHANGED" + old[7:10], True),
    "grow": (lambda path: os.truncate(path, 300_000), lambda old: old.ljust(300_000, b"\0"), True),
    "rename": (rename_over, lambda old: b"CHANGED" + b"r" * 1000, False),
    "unlink": (lambda path: (os.unlink(path), write_file(path, b"CHANGED")), lambda old: b"CHANGED", False),
    "chmod": (lambda path: os.chmod(path, 0o751), lambda old: old, True),
    "chown": (lambda path: os.chown(path, 7, 8), lambda old: old, True),
    "xattr": (lambda path: os.setxattr(path, "user.x", b"y"), lambda old: old, True),
    "times": (lambda path: os.utime(path, (5, 6)), lambda old: old, True),
    "link": (lambda path: os.link(path, path + ".link"), lambda old: old, True),
    "chmod, write": (lambda path: (os.chmod(path, 0o751), store(path, b"CHANGED")), lambda old: b"CHANGED" + old[7:], True),
    "link, write": (lambda path: (os.link(path, path + ".link"), os.stat(path + ".link"), store(path, b"CHANGED")),
                    lambda old: b"CHANGED" + old[7:], True),
    "move, write": (lambda path: (os.rename(path, path + ".m"), store(path + ".m", b"CHANGED"), os.rename(path + ".m", path)),
                    lambda old: b"CHANGED" + old[7:], True),
}


def files():
    return [(kind, change, f"{kind}-{change.replace(', ', '-')}") for kind, change in itertools.product(KINDS, CHANGES)]


def whole(fd):
    return b"".join(iter_read(fd))


def iter_read(fd):
    at = 0
    while data := os.pread(fd, 1 << 16, at):
        at += len(data)
        yield data


def mapped(fd, size, flags):
    with mmap.mmap(fd, size, flags, mmap.PROT_READ) as map:
        return map[:]


def fill():
    for number, (kind, _, name) in enumerate(files()):
        write_file(f"lower/{name}", KINDS[kind](number), 0o755 if kind == "binary" else 0o644)
        if kind == "linked":
            os.link(f"lower/{name}", f"lower/{name}.other")


def one(label, number, kind, change, name, see_new):
    """`see_new`: old descriptors and maps have to show the new data; else they may show the old, whole."""
    before = KINDS[kind](number)
    change, after, same_file = CHANGES[change]
    after = after(before)
    path, problems = f"ufs/{name}", []
    expect = lambda what, got, *wanted: got in wanted or problems.append(f"{what}: {_short(got)}")
    old, second = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
    shared = mmap.mmap(old, len(before), mmap.MAP_SHARED, mmap.PROT_READ)
    private = mmap.mmap(second, len(before), mmap.MAP_PRIVATE, mmap.PROT_READ)
    written = mmap.mmap(second, len(before), mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    expect("old data", whole(old), before)
    expect("old map", shared[:5000], before[:5000])
    written[100:104] = b"mine"
    ino = os.fstat(old).st_ino
    child = os.fork()
    if not child:  # It has the old descriptor by inheritance, and changes the file.
        try:
            change(path)
            os._exit(0)
        except OSError as error:
            os.write(2, f"# {label} {name}: {error}\n".encode())
            os._exit(1)
    expect("the change", os.waitpid(child, 0)[1], 0)
    allowed = (after,) if not same_file else (after,) if see_new else (before, after)
    if not same_file:
        allowed = (before,)
    for what, fd in (("old", old), ("second", second)):
        expect(f"{what} descriptor", whole(fd), *allowed)
        if same_file:
            expect(f"{what} fstat", os.fstat(fd).st_size, len(after))
        expect(f"{what} inode", os.fstat(fd).st_ino, ino)
    kept = min(4096, len(before), len(after)) if same_file else 4096
    for what, map in (("shared", shared), ("private", private)):
        expect(f"{what} map", map[:kept], *(data[:kept] for data in allowed))
    expect("own pages of a private map", written[100:104], b"mine") if kept > 104 else None
    new = os.open(path, os.O_RDONLY)
    expect("new descriptor", whole(new), after)
    expect("new shared map", mapped(new, len(after), mmap.MAP_SHARED), after)
    expect("new private map", mapped(new, len(after), mmap.MAP_PRIVATE), after)
    expect("stat", (os.stat(path).st_size, os.stat(path).st_ino == ino), (len(after), same_file))
    expect("lstat of the new descriptor", os.path.samestat(os.fstat(new), os.stat(path)), True)
    for flags, words in ((os.O_RDONLY, "RO"), (os.O_RDWR, "RW")):
        try:
            again = os.open(f"/proc/self/fd/{old}", flags)
            expect(f"reopened {words}", whole(again), *(allowed + (after,) if same_file else allowed))
            os.close(again)
        except OSError as error:
            # The name of what was split off is gone: nothing leads back.
            expect(f"reopened {words}", (error.errno, see_new and same_file), (errno.ESTALE, False))
    # Written again by a second opener while all is still open.
    if same_file:
        store(path, b"AGAIN")
        # What changed no data left the lower file to its readers, those opened later included.
        expect("written again", whole(new)[:5], b"AGAIN", *([before[:5]] if after == before and not see_new else []))
        with open(path, "rb") as file:
            expect("and opened", file.read(), (b"AGAIN" + after[5:]))
        after = b"AGAIN" + after[5:]
    for map in (shared, private, written):
        map.close()
    for fd in (old, second, new):
        os.close(fd)
    # All is on one node again: locks exclude, writes are seen at once, whichever way.
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    fcntl.flock(one, fcntl.LOCK_EX)
    expect("afterwards a lock excludes", attempt(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB), errno.EAGAIN)
    os.pwrite(one, b"LAST!", 0)
    with mmap.mmap(two, len(after), mmap.MAP_SHARED, mmap.PROT_READ) as map:
        expect("afterwards a map sees writes", map[:5], b"LAST!")
    expect("afterwards", whole(two), b"LAST!" + after[5:])
    if same_file and kind != "linked":
        expect("the inode number stays", os.fstat(two).st_ino, ino)
    if same_file and kind == "linked":
        expect("the other name shows it", attempt_read(path + ".other"), b"LAST!" + after[5:])
    os.close(one)
    os.close(two)
    check(f"{label}: {name}", not problems, "; ".join(problems))


def attempt_read(path):
    try:
        return read_file(path)
    except OSError as error:
        return errno.errorcode[error.errno]
EOF
export PYTHONPATH=$T/.test
program() { # program ARG...: a python part that has old.py as well
	local rest=$T/.test/part.py
	cat >"$rest"
	{ echo 'from lib import _short'; cat "$T/.test/old.py" "$rest"; } | python "$@"
}

program <<'EOF'
fill()
EOF
tree lower exact >lower.before
for options in "" coherent passthrough=off; do
	fresh "$options"
	program "${options:-default}" <<'EOF'
label = sys.argv[1]
for number, (kind, change, name) in enumerate(files()):
    # By default only what the kernel may hold, a large binary with one name, may keep its old data.
    one(label, number, kind, change, name, see_new=label != "default" or kind != "binary")
EOF
	ends
	tree lower exact >lower.after
	same "${options:-default}: no byte of the lower has changed" lower.before lower.after
done

# ---- locks, running programs -------------------------------------------------------------------------------------------

rm -rf lower && mkdir lower
cp /bin/sleep lower/sleep; cat /dev/zero | head -c 200000 >>lower/sleep
cp lower/sleep lower/running; cp lower/sleep lower/locked; cp lower/sleep lower/rights
tree lower exact >lower.before
fresh
program <<'EOF'
import subprocess

running = subprocess.Popen(["ufs/running", "60"])
time.sleep(0.2)
fails("a running program cannot be written", errno.ETXTBSY, os.open, "ufs/running", os.O_RDWR)
fails("nor cut", errno.ETXTBSY, os.truncate, "ufs/running", 5)
equal("it still runs", running.poll(), None)
works("its rights can be changed", os.chmod, "ufs/running", 0o700)
fails("then it cannot be written either", errno.ETXTBSY, os.open, "ufs/running", os.O_RDWR)
works("and it is started again by its name", subprocess.run, ["ufs/running", "0"], check=True)
fails("nor after that", errno.ETXTBSY, os.open, "ufs/running", os.O_RDWR)
works("by /proc/PID/exe", subprocess.run, [f"/proc/{running.pid}/exe", "0"], check=True)
works("and read so", read_file, f"/proc/{running.pid}/exe")
running.kill()
running.wait()
works("written once it has ended", append_file, "ufs/running", b"\0")
works("and run", subprocess.run, ["ufs/running", "0"], check=True)

# A program that is replaced while it runs.
running = subprocess.Popen(["ufs/sleep", "60"])
time.sleep(0.1)
write_file("ufs/sleep.new", read_file("ufs/sleep") + b"new", 0o755)
os.rename("ufs/sleep.new", "ufs/sleep")
works("its /proc/PID/exe stays", subprocess.run, [f"/proc/{running.pid}/exe", "0"], check=True)
works("the new one runs", subprocess.run, ["ufs/sleep", "0"], check=True)
running.kill()
running.wait()

old = os.open("ufs/locked", os.O_RDONLY)
other = os.open("ufs/locked", os.O_RDONLY)
fcntl.flock(old, fcntl.LOCK_EX)
fails("two readers of a passed file exclude each other", errno.EAGAIN, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
new = os.open("ufs/locked", os.O_RDWR)
works("documented: a lock of before the copy does not hold against one after", fcntl.flock, new, fcntl.LOCK_EX | fcntl.LOCK_NB)
third = os.open("ufs/locked", os.O_RDWR)
fails("after it they exclude each other again", errno.EAGAIN, fcntl.flock, third, fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.lockf(new, fcntl.LOCK_EX, 10)
child = os.fork()
if not child:
    os._exit(attempt(fcntl.lockf, third, fcntl.LOCK_EX | fcntl.LOCK_NB, 10))
equal("so do record locks", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), errno.EAGAIN)
for fd in (old, other, new, third):
    os.close(fd)

# Rights of a file that is open: nothing is split, every way leads to it.
old = os.open("ufs/rights", os.O_RDONLY)
data = whole(old)
for change in (lambda: os.fchmod(old, 0o700), lambda: os.setxattr(old, "user.a", b"b"), lambda: os.utime(old, (1, 2))):
    change()
    again = works("reopened after a change of attributes", os.open, f"/proc/self/fd/{old}", os.O_RDONLY)
    equal("the data are there", whole(again), data)
    os.close(again)
    equal("and by name", read_file("ufs/rights"), data)
path = os.open("ufs/rights", os.O_PATH)
again = works("reopened for writing through a descriptor without a name's help", os.open, "ufs/rights", os.O_RDWR)
os.close(again)
os.close(path)
EOF
ends
tree lower exact >lower.after
same "running and locked: the lower is untouched" lower.before lower.after

# ---- many at once ------------------------------------------------------------------------------------------------------

rm -rf lower && mkdir lower
program <<'EOF'
for kind in ("binary", "text", "small"):
    for number in range(12):
        filler = b"\0" if kind != "text" else b"\n"
        write_file(f"lower/{kind}{number}", (b"0000" + filler) * (1000 if kind == "small" else 30_000))
EOF
tree lower exact >lower.before
for options in "" coherent; do
	fresh "$options"
	program "${options:-default}" <<'EOF'
import multiprocessing
import random

label = sys.argv[1]
END = time.monotonic() + 9


def version(data):
    """The one version that the whole file is of, else None."""
    return data[:4] if len(data) % 5 == 0 and data == data[:5] * (len(data) // 5) else None


def reader(seed, out):
    chance, problems, seen = random.Random(seed), [], {}
    held = []
    while time.monotonic() < END and len(problems) < 5:
        name = chance.choice(("binary", "text", "small")) + str(chance.randrange(12))
        try:
            # Written under an exclusive lock of a lock file, so every open under a shared one sees a complete version.
            with open("ufs/lock" + name, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)
                fd = os.open("ufs/" + name, os.O_RDONLY)
                if chance.random() < 0.5:
                    data = whole(fd)
                else:
                    data = mapped(fd, os.fstat(fd).st_size, chance.choice((mmap.MAP_SHARED, mmap.MAP_PRIVATE)))
                got = version(data)
                if got is None or got < seen.get(name, b""):
                    problems.append(f"{name}: {data[:10]} after {seen.get(name)}, {len(data)} bytes, torn: {got is None}")
                else:
                    seen[name] = got
            held.append(fd)  # Kept open for a while, so that readers stand beside writers.
            if len(held) > 6:
                os.close(held.pop(chance.randrange(6)))
        except OSError as error:
            problems.append(f"{name}: {error}")
    out.put(problems)


def writer(seed, out):
    chance, problems, count = random.Random(seed), [], 0
    while time.monotonic() < END and len(problems) < 5:
        kind = chance.choice(("binary", "text", "small"))
        name = kind + str(chance.randrange(12))
        size = chance.choice((500, 900)) if kind == "small" else chance.choice((30_000, 20_000))
        try:
            with open("ufs/lock" + name, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                fd = os.open("ufs/" + name, os.O_RDONLY)
                now = int(os.pread(fd, 4, 0))
                os.close(fd)
                new = (b"%04d" % (now + 1) + (b"\n" if kind == "text" else b"\0")) * size
                way = chance.randrange(5)
                if way == 0:
                    write_file("ufs/" + name, new)
                elif way == 1:
                    write_file("ufs/" + name + ".new", new)
                    os.rename("ufs/" + name + ".new", "ufs/" + name)
                elif way == 2:
                    fd = os.open("ufs/" + name, os.O_RDWR)
                    os.ftruncate(fd, len(new))
                    with mmap.mmap(fd, len(new)) as map:
                        map[:] = new
                    os.close(fd)
                elif way == 3:
                    os.truncate("ufs/" + name, len(new))
                    store("ufs/" + name, new)
                else:
                    os.chmod("ufs/" + name, chance.choice((0o644, 0o755, 0o4755)))
                    fd = os.open("ufs/" + name, os.O_WRONLY)
                    os.ftruncate(fd, 0)
                    os.write(fd, new)
                    os.close(fd)
                count += 1
        except OSError as error:
            problems.append(f"{name}, way {way}: {error}")
    out.put(problems)
    out.put([f"#{count}"])


for kind in ("binary", "text", "small"):
    for number in range(12):
        write_file(f"ufs/lock{kind}{number}", b"")
out = multiprocessing.Queue()
crowd = [multiprocessing.Process(target=part, args=(n, out)) for n, part in enumerate([reader] * 4 + [writer] * 2)]
for member in crowd:
    member.start()
told = [out.get(timeout=60) for _ in range(8)]
for member in crowd:
    member.join()
writes = [int(text[1:]) for problems in told for text in problems if text.startswith("#")]
problems = [text for problems in told for text in problems if not text.startswith("#")]
print(f"# {label}: {sum(writes)} writes")
equal(f"{label}: many at once: every open sees the last complete version, and nothing fails", problems, [])
check(f"{label}: they wrote", sum(writes) > 50, writes)
EOF
	ends
	tree lower exact >lower.after
	same "${options:-default}, many at once: the lower is untouched" lower.before lower.after
done

# ---- logs that are followed --------------------------------------------------------------------------------------------

rm -rf lower && mkdir lower
for size in 1 100 5000; do
	yes "a line of the log" | head -c ${size}000 >lower/log$size
	echo >>lower/log$size
done
fresh
for size in 1 100 5000; do
	tail -n 1 -F ufs/log$size >followed$size 2>&1 &
	followers[size]=$!
done
until_true 30 eval '[ -s followed1 ] && [ -s followed100 ] && [ -s followed5000 ]'
for n in 1 2 3; do
	for size in 1 100 5000; do
		echo "line $n" >>ufs/log$size
	done
	sleep 0.3
done
# followed SIZE: how many of the new lines its reader has seen.
followed() { grep -c '^line [123]$' "followed$1"; }
for size in 1 100 5000; do
	until_true 30 eval '[ "$(followed $size)" -ge 3 ]'
	kill ${followers[size]}
	equal "tail -F follows a lower log of $size KB" "$(followed $size)" 3
done
ends

# ---- files of the upper, passed and cached in turn ---------------------------------------------------------------------

rm -rf lower && mkdir lower
program <<'EOF'
for n in range(6):
    write_file(f"lower/text{n}", b"text %d\n" % n * 300)
write_file("lower/suid", b"\0" + pattern("suid", 100_000), 0o4755)
os.chmod("lower/suid", 0o6755)
EOF
make_user
fresh dev,suid
program <<'EOF'
# Pages cached while small, then written past the daemon, then cached again: never a stale page.
for n in range(6):
    path, data, problems = f"ufs/text{n}", read_file(f"lower/text{n}"), []
    for turn in range(60):
        fd = os.open(path, os.O_RDONLY)
        with mmap.mmap(fd, len(data), mmap.MAP_SHARED, mmap.PROT_READ) as map:
            if whole(fd) != data or map[:] != data:
                problems.append(f"turn {turn}: {whole(fd)[:20]} for {data[:20]}")
        os.close(fd)
        if n >= 3 and turn % 3 == 0:
            os.chmod(path, 0o4644 if turn % 2 else 0o644)  # A set-id file is not passed.
        new = (b"turn %06d\n" % turn) * (100 + turn % 5 * 100)
        way = turn % 5
        if way == 0:
            write_file(path, new)
        elif way == 1:
            fd = os.open(path, os.O_RDWR)
            os.ftruncate(fd, len(new))
            with mmap.mmap(fd, len(new)) as map:
                map[:] = new
            os.close(fd)
        elif way == 2:
            new = data + b"appended\n"
            append_file(path, b"appended\n")
        elif way == 3:
            new = data[:4] + b"XYZ" + data[7:]
            fd = os.open(path, os.O_WRONLY)
            os.pwrite(fd, b"XYZ", 4)
            os.close(fd)
        else:
            new = data[: len(data) // 2].ljust(len(data), b"\0")
            os.truncate(path, len(data) // 2)
            os.truncate(path, len(data))
        data = new
        if os.stat(path).st_size != len(data):
            problems.append(f"turn {turn}: size {os.stat(path).st_size} for {len(data)}")
    equal(f"text{n}: read, write, close, sixty times", problems, [])
    equal(f"text{n}: the upper has the same", read_file(f"upper/text{n}"), data)

# Two processes with shared maps of one passed file, a third reads.
write_file("ufs/both", bytes(1 << 20))
fds = [os.open("ufs/both", os.O_RDWR) for _ in range(2)]
maps = [mmap.mmap(fd, 1 << 20) for fd in fds]
children = []
for number, map in enumerate(maps):
    child = os.fork()
    if not child:
        for page in range(number, 256, 2):
            map[page * 4096 : page * 4096 + 8] = b"page %03d" % page
        os._exit(0)
    children.append(child)
equal("two writers by map end", [os.waitpid(child, 0)[1] for child in children], [0, 0])
wanted = b"".join((b"page %03d" % page).ljust(4096, b"\0") for page in range(256))
equal("each sees the other's", (maps[0][:] == wanted, maps[1][:] == wanted, read_file("ufs/both") == wanted), (True, True, True))
os.pwrite(fds[0], b"by write", 8192)
equal("a write shows in a map", maps[1][8192:8200], b"by write")
os.ftruncate(fds[0], 4096)
child = os.fork()
if not child:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    maps[1][8192]
    os._exit(0)
equal("a page that was cut off is SIGBUS", os.waitpid(child, 0)[1] & 127, 7)
os.ftruncate(fds[0], 16384)
equal("grown again it is zeros", maps[1][4096:16384], bytes(12288))

# Times and blocks follow stores through a map and writes past the daemon.
os.utime("ufs/both", (1, 1))
equal("times are set", os.stat("ufs/both").st_mtime, 1)
maps[0][0:4] = b"late"
maps[0].flush()
check("a store through a map sets the time", os.stat("ufs/both").st_mtime > 1, os.stat("ufs/both").st_mtime)
os.utime("ufs/both", (1, 1))
os.stat("ufs/both")
os.pwrite(fds[0], b"w", 0)
check("a write sets the time", os.stat("ufs/both").st_mtime > 1)
for map in maps:
    map.close()
for fd in fds:
    os.close(fd)
write_file("ufs/blocks", b"")
fd = os.open("ufs/blocks", os.O_RDWR)
os.stat("ufs/blocks")
os.pwrite(fd, b"x" * 65536, 1 << 20)
os.fsync(fd)
equal("blocks of a sparse file", (os.stat("ufs/blocks").st_blocks, os.fstat(fd).st_size), (128, (1 << 20) + 65536))
equal("its extents", extents(fd), [(1 << 20, (1 << 20) + 65536)])
fallocate(fd, 0, 0, 4096)
fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 1 << 20, 4096)
equal("after allocation and a hole", (os.pread(fd, 8192, 1 << 20)[4090:4100], os.stat("ufs/blocks").st_size), (bytes(6) + b"xxxx", (1 << 20) + 65536))
os.close(fd)

# O_DIRECT past the page cache, beside a map.
direct = works("O_DIRECT", os.open, "ufs/blocks", os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
page[:] = b"d" * 4096
fd = os.open("ufs/blocks", os.O_RDWR)
with mmap.mmap(fd, 8192) as map:
    map[0]
    equal("direct write", os.pwrite(direct, page, 0), 4096)
    equal("a direct write shows in a map and a read", (map[:3], os.pread(fd, 3, 0)), (b"ddd", b"ddd"))
    map[0:3] = b"map"
    map.flush()
    os.preadv(direct, [page], 0)
    equal("a stored page shows in a direct read", page[:3], b"map")
os.close(fd)
os.close(direct)

# Set-id bits and capabilities are lost with what a user writes.
IDS = 0o6755


def as_user(call):
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(4321)
            os.setuid(4321)
            call()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def allocate():
    fd = os.open("ufs/ids", os.O_RDWR)
    fallocate(fd, 0, 0, 300_000)
    os.close(fd)


def cut_open():
    fd = os.open("ufs/ids", os.O_RDWR)
    os.ftruncate(fd, 9)
    os.close(fd)


WAYS = {"write": lambda: store("ufs/ids", b"x"), "append": lambda: append_file("ufs/ids", b"x"), "fallocate": allocate,
        "truncate": lambda: os.truncate("ufs/ids", 5), "ftruncate": cut_open,
        "O_TRUNC": lambda: os.close(os.open("ufs/ids", os.O_WRONLY | os.O_TRUNC))}
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
for name, way in WAYS.items():
    for seen in ("new", "lower", "renewed"):
        if seen == "lower":
            os.rename("ufs/suid", "ufs/ids")
        else:
            write_file("ufs/ids", b"i" * 1000)
        os.chown("ufs/ids", 4321, 4321)
        os.chmod("ufs/ids", IDS)
        if seen == "renewed":
            read_file("ufs/ids")
        os.stat("ufs/ids")
        equal(f"{name}, {seen}: a user writes", as_user(way), 0)
        equal(f"{name}, {seen}: no set-id bit is left", (oct(os.stat("ufs/ids").st_mode & 0o7777), oct(os.stat("upper/ids").st_mode & 0o7777)), ("0o755", "0o755"))
        os.unlink("ufs/ids")
        if seen == "lower":
            write_file("ufs/suid", b"\0" + pattern("again", 100_000), IDS)
    write_file("ufs/ids", b"i" * 1000)
    os.chown("ufs/ids", 4321, 4321)
    os.chmod("ufs/ids", 0o755)
    os.setxattr("ufs/ids", "security.capability", CAPABILITY)
    equal(f"{name}: a user writes a file with capabilities", as_user(way), 0)
    equal(f"{name}: they are lost", "security.capability" in os.listxattr("ufs/ids"), False)
    os.setxattr("ufs/ids", "security.capability", CAPABILITY)
    way()
    equal(f"{name}: so they are when root writes", "security.capability" in os.listxattr("ufs/ids"), False)
    os.unlink("ufs/ids")
EOF
ends

# ---- one copy of the data for all unions -------------------------------------------------------------------------------

rm -rf lower && mkdir lower
head -c $((64 << 20)) /dev/urandom >lower/shared
for n in 1 2 3 4; do
	check "union $n of one lower mounts" union -o cow,allow_other lower=RO:u$n=RW "$T/m$n"
done
program <<'EOF'
SIZE = 64 << 20


def cached():
    """Pages of files in memory, in bytes: of a memory cgroup of our own, so that others on the machine do not count."""
    with open(f"{GROUP}/memory.stat") as file:
        return next(int(line.split()[1]) for line in file if line.split()[0] in ("cache", "file"))


GROUP = next(f"{top}/cowfs-test-{os.getpid()}-{time.time_ns()}" for top in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup")
             if os.path.exists(f"{top}/memory.stat"))
os.mkdir(GROUP)
try:
    for how in ("read", "map"):
        fd = os.open("lower/shared", os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        child = os.fork()
        if not child:
            write_file(f"{GROUP}/cgroup.procs", b"0")
            before, fds = cached(), []
            for n in range(1, 5):
                fds.append(os.open(f"m{n}/shared", os.O_RDONLY))
                if how == "read":
                    for _ in iter_read(fds[-1]):
                        pass
                else:
                    with mmap.mmap(fds[-1], SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as map:
                        for page in range(0, SIZE, 4096):
                            map[page]
            copies = (cached() - before) / SIZE
            print(f"# four unions, by {how}: {copies:.2f} copies")
            check(f"by {how}: one copy in memory for four unions", 0.9 < copies <= 1.1, copies)
            os._exit(0)
        os.waitpid(child, 0)
finally:
    for _ in range(600):
        if not attempt(os.rmdir, GROUP):
            break
        time.sleep(0.05)
EOF
for n in 1 2 3 4; do
	check "union $n unmounts" unmount "$T/m$n"
done
no_daemon_left

# ---- cached listings ---------------------------------------------------------------------------------------------------

rm -rf lower && mkdir -p lower/dir
for n in {1..200}; do
	echo "$n" >lower/dir/f$n
done
echo 1234 >lower/quiet
fresh
program <<'EOF'
import multiprocessing
import random

chance, wanted, problems = random.Random(1), {f"f{n}": len(str(n)) + 1 for n in range(1, 201)}, []
stop = multiprocessing.Event()


def lister():
    while not stop.is_set():
        for entry in os.scandir("ufs/dir"):
            attempt(entry.stat)


def listing():
    return {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir("ufs/dir")}


members = [multiprocessing.Process(target=lister) for _ in range(2)]
for member in members:
    member.start()
for turn in range(600):
    names = sorted(set(wanted) - {"f200"})  # One stays in the lower.
    name, way = chance.choice(names), turn % 7
    if way == 0:
        equal_absent = attempt(os.stat, f"ufs/dir/n{turn}") == errno.ENOENT  # The absence is cached.
        write_file(f"ufs/dir/n{turn}", b"new")
        wanted[f"n{turn}"] = 3
        if not equal_absent or os.stat(f"ufs/dir/n{turn}").st_size != 3:
            problems.append(f"turn {turn}: creation of an absent name")
    elif way == 1:
        os.unlink(f"ufs/dir/{name}")
        del wanted[name]
        if attempt(os.stat, f"ufs/dir/{name}") != errno.ENOENT:
            problems.append(f"turn {turn}: {name} is still there")
    elif way == 2:
        os.rename(f"ufs/dir/{name}", f"ufs/dir/r{turn}")
        wanted[f"r{turn}"] = wanted.pop(name)
    elif way == 3:
        append_file(f"ufs/dir/{name}", b"grown")
        wanted[name] += 5
    elif way == 4:
        os.chmod(f"ufs/dir/{name}", 0o600 | chance.randrange(64))
    elif way == 5:
        other = chance.choice(names)
        os.rename(f"ufs/dir/{name}", f"ufs/dir/{other}")
        if other != name:
            wanted[other] = wanted.pop(name)
    else:
        os.truncate(f"ufs/dir/{name}", 1)
        wanted[name] = 1
    now = listing()
    if {name: st.st_size for name, st in now.items()} != wanted:
        wrong = [(n, now[n].st_size if n in now else None, wanted.get(n)) for n in set(now) | set(wanted)
                 if n not in now or now[n].st_size != wanted.get(n)]
        problems.append(f"turn {turn}, way {way}: {wrong[:3]}")
    if way == 4 and now[name].st_mode != os.stat(f"upper/dir/{name}").st_mode:
        problems.append(f"turn {turn}: mode of {name}")
    if len(problems) > 5:
        break
stop.set()
for member in members:
    member.join()
equal("listings are right after each of 600 changes", problems, [])

# The administrator changes the lower: seen after ten seconds at most.
absent = attempt(os.stat, "ufs/dir/added")
equal("not there yet", absent, errno.ENOENT)
equal("nor alone", attempt(os.stat, "ufs/alone"), errno.ENOENT)
equal("what only stat asks for", os.stat("ufs/quiet").st_size, 5)
write_file("lower/alone", b"1")
append_file("lower/quiet", b"grown")
kept = "f200"
equal("before", os.stat(f"ufs/dir/{kept}").st_size, wanted[kept])
listing()
write_file("lower/dir/added", b"by the administrator")
write_file(f"lower/dir/{kept}", b"changed by the administrator")
began, seen = time.monotonic(), {}
while time.monotonic() - began < 20 and len(seen) < 6:
    now = time.monotonic() - began
    if not attempt(os.stat, "ufs/alone"):
        seen.setdefault("absent name", now)
    if os.stat("ufs/quiet").st_size == 10:
        seen.setdefault("attributes", now)
    if not attempt(os.stat, "ufs/dir/added"):
        seen.setdefault("name", now)
    if "added" in os.listdir("ufs/dir"):
        seen.setdefault("listing", now)
    if os.stat(f"ufs/dir/{kept}").st_size == 28:
        seen.setdefault("size", now)
    if read_file(f"ufs/dir/{kept}") == b"changed by the administrator":
        seen.setdefault("data", now)
    time.sleep(0.1)
print("# the administrator's changes are seen after", {what: f"{after:.1f} s" for what, after in seen.items()})
check("an administrator's changes are seen when ten seconds are over", len(seen) == 6 and max(seen.values()) < 15, seen)
EOF
ends

# ---- large copy-ups beside other requests ------------------------------------------------------------------------------

rm -rf lower && mkdir -p lower/quiet
for n in {1..300}; do
	echo >lower/quiet/f$n
done
head -c $((64 << 20)) /dev/urandom >lower/part1
for n in {2..8}; do cp lower/part1 lower/part$n; done
cat lower/part* >lower/large
sync
fresh
program <<'EOF'
import itertools
import multiprocessing


def during(label, jobs, most):
    """The worst unrelated stat and listing while these files are copied up."""
    members = [multiprocessing.Process(target=append_file, args=(f"ufs/{name}", b"x")) for name in jobs]
    began, worst, slowest = time.monotonic(), {"stat": 0, "ls": 0}, None
    count = 0
    for member in members:
        member.start()
    for n in itertools.count():
        for what, call in (("stat", lambda: (attempt(os.stat, f"ufs/quiet/none{label}{n}"), os.stat(f"ufs/quiet/f{n % 300 + 1}"))),
                           ("ls", lambda: os.listdir("ufs/quiet") if n % 20 == 0 else None)):
            at = time.monotonic()
            call()
            worst[what] = max(worst[what], time.monotonic() - at)
            count += 1
        if not any(member.is_alive() for member in members):
            break
        time.sleep(0.001)
    took = time.monotonic() - began
    print(f"# {label}: {took:.2f} s, {count} requests beside; worst " + ", ".join(f"{k} {v * 1000:.1f} ms" for k, v in worst.items()))
    equal(f"{label}: they are copied", [member.exitcode for member in members], [0] * len(jobs))
    check(f"{label}: unrelated requests are answered meanwhile", max(worst.values()) < max(most, took / 4), worst)


# Bounds that catch a request waiting for a copy; the figures above them are what to look at.
during("one copy-up of 512 MiB", ["large"], 0.3)
during("eight copy-ups of 64 MiB", [f"part{n}" for n in range(1, 9)], 0.5)
EOF
ends

# Other lowers under files that are passed, mapped and executed: what is open goes on with what it has, what is opened anew has the new.
rm -rf one two up && mkdir -p one/gone two up
python <<'EOF'
for lower, sign in (("one", b"1"), ("two", b"2")):
    write_file(f"{lower}/binary", b"\0BIN" + sign * 300_000)
    write_file(f"{lower}/bare", b"\0BIN" + sign * (200_000 if lower == "one" else 100_000))
    write_file(f"{lower}/text", sign * 100)
EOF
cp "$(command -v sleep)" one/program && cp "$(command -v sleep)" two/program
check "a union to be exchanged mounts" union -o allow_other up=RW:one=RO "$T/ufs"
python <<'EOF'
import mmap
import subprocess

T = os.environ["T"]


def over(*lowers):
    listed = ":".join([f"{T}/{lower}=RO" for lower in lowers] + [f"{T}/up=RW"])
    subprocess.run([os.environ["COWFS"], "-o", "remount,branches=" + listed, f"{T}/ufs"], check=True)


os.chmod("ufs/bare", 0o640)
fds = {name: os.open(f"ufs/{name}", os.O_RDONLY) for name in ("binary", "bare", "text")}
maps = {name: mmap.mmap(fd, 0, prot=mmap.PROT_READ) for name, fd in fds.items()}
sizes = {name: os.fstat(fd).st_size for name, fd in fds.items()}
gone = os.open("ufs/gone", os.O_RDONLY | os.O_DIRECTORY)
running = subprocess.Popen([f"{T}/ufs/program", "60"])
for lowers in (["two"], ["two", "one"], ["one", "two"], [], ["one"], ["two"]):
    over(*lowers)
    case = f"over {lowers}: "
    for name, fd in fds.items():
        old = (os.pread(fd, 5, 10), maps[name][sizes[name] - 5:], os.fstat(fd).st_size)
        equal(case + name + ", open since before", old, (b"11111", b"11111", sizes[name]))
        if lowers:
            wanted = read_file(f"{lowers[0]}/{name}")
            new = (read_file(f"ufs/{name}") == wanted, os.stat(f"ufs/{name}").st_size)
            equal(case + name + ", opened anew", new, (True, len(wanted)))
    check(case + "a program runs on", running.poll() is None)
equal("attributes that were copied up stay", os.stat("ufs/bare").st_mode & 0o777, 0o640)
for name in ("binary", "bare"):
    append_file(f"ufs/{name}", b"end")
    equal(f"{name} is copied up from the new lower", read_file(f"ufs/{name}")[-5:], b"22end")
    equal(f"{name}, open since before, after that", os.pread(fds[name], 5, 10), b"11111")
os.fchmod(fds["text"], 0o600)
mode = (os.fstat(fds["text"]).st_mode & 0o777, os.fstat(fds["text"]).st_nlink, os.stat("ufs/text").st_mode & 0o777)
equal("a mode by a descriptor whose name leads elsewhere", mode, (0o600, 0, 0o644))
equal("a directory that is gone", [attempt(os.fstat, gone), attempt(os.stat, "ufs/gone")], [errno.ESTALE, errno.ENOENT])
running.kill()
running.wait()
EOF
ends
finish
