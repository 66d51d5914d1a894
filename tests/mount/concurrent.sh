#!/bin/bash
# Sixteen processes copy up sixteen lower files of 24 MiB at once, and sixteen the same one: the content is right, and an
# unrelated stat is answered meanwhile.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=200

mkdir -p lower/{quiet,dir} upper ufs
python <<'EOF2'
for n in range(16):
    write_file(f"lower/f{n}", pattern(n, 24 << 20))
write_file("lower/one", pattern("one", 24 << 20))
for n in range(300):
    write_file(f"lower/quiet/{n}", b"q")
write_file("lower/dir/shared", pattern("shared", 24 << 20))
EOF2
sync
tree lower exact >lower.before
for threads in 2 4; do
	rm -rf upper && mkdir upper
	check "threads=$threads: mounts" union -o "cow,allow_other,threads=$threads" lower=RO:upper=RW "$T/ufs"
	python "$threads" <<'EOF2'
import hashlib
import itertools
import multiprocessing

MIB = 1 << 20
top = "ufs"
label = f"threads={sys.argv[1]}"
digest = lambda data: hashlib.sha256(data).hexdigest()


def copy_up(args):
    """Writes a few bytes of its own at its own place; nothing before that has touched the file through the mount."""
    name, worker = args
    fd = os.open(f"{top}/{name}", os.O_WRONLY)
    os.pwrite(fd, b"worker %02d" % worker, worker * MIB + 100)
    os.close(fd)


def watch(stop, out):
    """Requests that touch no file being copied: names that no cache of the kernel can answer."""
    worst = count = 0
    for n in itertools.count():
        if stop.is_set():
            break
        began = time.monotonic()
        attempt(os.stat, f"{top}/quiet/none{n}")
        os.stat(f"{top}/quiet/{n % 300}")
        worst = max(worst, time.monotonic() - began)
        count += 1
        time.sleep(0.001)
    out.put((worst, count))


def at_once(jobs):
    stop, out = multiprocessing.Event(), multiprocessing.Queue()
    watcher = multiprocessing.Process(target=watch, args=(stop, out))
    watcher.start()
    began = time.monotonic()
    with multiprocessing.Pool(len(jobs)) as pool:
        pool.map(copy_up, jobs, chunksize=1)
    took = time.monotonic() - began
    stop.set()
    worst, count = out.get(timeout=60)
    watcher.join()
    print(f"# {len(jobs)} copy-ups took {took:.1f} s; {count} unrelated requests meanwhile, the worst {worst * 1000:.0f} ms")
    # The machine's two cores serve thirty processes here: this bound catches a lock held over a copy, not a slow machine.
    check(f"{label}: unrelated requests are answered meanwhile", worst < max(0.5, took / 4), f"{worst:.2f} s of {took:.1f} s")
    check(f"{label}: there were some", count > 20, count)


def expected(seed, workers):
    data = bytearray(pattern(seed, 24 * MIB))
    for worker in workers:
        data[worker * MIB + 100 : worker * MIB + 109] = b"worker %02d" % worker
    return digest(data)


at_once([(f"f{n}", n) for n in range(16)])
wrong = [n for n in range(16) if digest(read_file(f"{top}/f{n}")) != expected(n, [n])]
equal(f"{label}: sixteen files, each its own content", wrong, [])
wrong = [n for n in range(16) if digest(read_file(f"upper/f{n}")) != expected(n, [n])]
equal(f"{label}: the same in the upper", wrong, [])
at_once([("one", n) for n in range(16)])
equal(f"{label}: one file, every worker's bytes", digest(read_file(f"{top}/one")), expected("one", range(16)))
at_once([("dir/shared", n) for n in range(16)])
equal(f"{label}: one file in a lower directory", digest(read_file(f"{top}/dir/shared")), expected("shared", range(16)))
EOF2
	equal "threads=$threads: the upper holds these files and no leftovers" "$(cd upper && find . -type f -size +1M | sort -V | tr '\n' ' ')" \
		"./dir/shared $(printf './f%d ' {0..15})./one "
	check "threads=$threads: unmounts" unmount "$T/ufs"
	no_daemon_left
done
tree lower exact >lower.after
same "the lower is untouched" lower.before lower.after
finish
