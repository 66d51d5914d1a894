#!/bin/bash
# What the kernel's own hands on file data may not break: old and new descriptors and maps over a copy-up, followed logs, page
# caches, set-id bits, one page-cache copy for all unions, cached listings, requests beside large copy-ups.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=150

mkdir -p lower upper ufs m{1,2,3,4} u{1,2,3,4}

# fresh OPTION...: the union of a lower that python fills by lower.py, mounted anew with these options.
fresh() {
	rm -rf upper && mkdir upper
	check "mounts with ${*:-no option}" union -o "cow,allow_other,default_permissions${1:+,$1}" lower=RO:upper=RW "$T/ufs"
}
gone() {
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
	gone
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
gone
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
	gone
	tree lower exact >lower.after
	same "${options:-default}, many at once: the lower is untouched" lower.before lower.after
done
finish
