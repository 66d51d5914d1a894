"""Measurements beside the table: growth, reflinks, page-cache copies, memory, stalls, busy machines, real programs.

A section takes the running bench and returns a list of parts: {"title", "head", "rows", "goal", "plot"}. `head` may name
peers by key; a plot has x, y and series {peer: [[x, y], ..]}. Seconds are medians of the bench's rounds.
"""

import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from ground import Failed, Image, daemons, pss, run
from programs import programs  # noqa: F401  (a section like the others)

MIB = 1 << 20


def rounds(bench, what, peer, once):
    """The median of `once()` over the rounds, or None with a note when the peer fails."""
    values = []
    for number in range(bench.args.rounds):
        bench.say(f"{what}, round {number + 1}: {peer.label}", 0.0)
        try:
            values.append(once())
        except (Failed, OSError) as failure:
            bench.notes.append(f"{peer.label}, {what}: {failure}")
            return None
    return statistics.median(values)


def unions(bench):
    return [peer for peer in bench.peers if peer.key != "native"]


def growth(bench):
    """Walks over 1 to 100 lowers, directories of 10^2 to 10^6 entries, trees of 10^4 to 10^6 files."""
    small = bench.args.divide > 1
    most = 100_000 if small else 1_000_000
    image = Image(bench.scratch, "growth", 20, inodes=500_000 if small else 3_500_000)
    try:
        return [over_lowers(bench, image, 4_000 if small else 20_000),
                over_sizes(bench, image, "directories", [n for n in (100, 1_000, 10_000, 100_000, 1_000_000) if n <= most]),
                over_sizes(bench, image, "trees", [n for n in (10_000, 100_000, 1_000_000) if n <= most])]
    finally:
        image.close()


def walk(bench, image, peer, lowers, what, names):
    """Microseconds a name: [first walk, second walk]; natively over the single lower."""
    if peer.key == "native" and len(lowers) > 1:
        return None
    pair = []

    def once():
        with bench.union(peer, lowers, image=image) as union:
            try:
                seconds = bench.driver("walk", union.root if peer.command else lowers[0], ".", timeout=180)
            except Failed:
                union.kill()
                raise
            pair.append(seconds["walk_again"])
            return seconds["walk_first"]

    first = rounds(bench, what, peer, once)
    return None if first is None else [1e6 * first / names, 1e6 * statistics.median(pair) / names]


def part(bench, title, x, found, goal):
    """Table and plot of the first walks; the second walks in brackets."""
    keys = [peer.key for peer in bench.peers]
    rows = []
    for size, by_peer in found.items():
        base = (by_peer.get("overlay") or [None])[0]
        cells = [f"{pair[0]:.2f} ({pair[1]:.2f})" if (pair := by_peer.get(key)) else "-" for key in keys]
        ours = (by_peer.get("cowfs") or [None])[0]
        rows.append([f"{size:,}", *cells, f"{ours / base:.2f}" if ours and base else "-"])
    series = {key: [[size, by_peer[key][0]] for size, by_peer in found.items() if by_peer.get(key)] for key in keys}
    return {"title": f"{title}: microseconds a name, first walk (second)", "head": [x, *keys, "cowfs / overlay"], "rows": rows,
            "goal": goal, "found": found, "plot": {"x": x, "y": "us a name, first walk", "series": {k: s for k, s in series.items() if s}}}


def over_lowers(bench, image, files):
    found = {}
    for count in (1, 10, 50, 100):
        lowers = [image.path / f"s{count}" / str(n) for n in range(count)]
        for n, lower in enumerate(lowers):
            for directory in range(files // 100):
                (lower / f"d{directory}").mkdir(parents=True)
        for number in range(files):
            (lowers[number % count] / f"d{number // 100}" / f"entry{number}").touch()
        image.settle()
        found[count] = {peer.key: walk(bench, image, peer, lowers, f"{count} lowers", files + files // 100)
                        for peer in bench.peers}
    return part(bench, f"{files:,} files spread over merged lowers", "lowers", found,
                "never above twice kernel overlayfs at 50 lowers")


def over_sizes(bench, image, kind, sizes):
    found = {}
    for size in sizes:
        lower = image.path / f"{kind}{size}"
        lower.mkdir()
        bench.driver("fill", lower, size, 100 if kind == "trees" else 0)
        image.settle()
        bench.driver("walk", lower, ".")
        names = size + (size // 100 if kind == "trees" else 0)
        found[size] = {peer.key: walk(bench, image, peer, [lower], f"{kind} of {size:,}", names) for peer in bench.peers}
    what = "One directory of so many entries" if kind == "directories" else "A tree of so many files, 100 a directory"
    return part(bench, what, "entries", found, "flat")


def reflink(bench):
    """First write to a 1 GiB lower file where the filesystem can share blocks (xfs, btrfs)."""
    parts = []
    for kind in ("xfs", "btrfs"):
        size = max(1024 // bench.args.divide, 64)
        image = Image(bench.scratch, kind, 4, kind)
        try:
            lower = image.path / "l"
            lower.mkdir()
            run("dd", "if=/dev/zero", f"of={lower}/large", "bs=1M", f"count={size}")
            image.settle()

            def once(peer):
                with bench.union(peer, [lower], image=image) as union:
                    return bench.driver("firstwrite", union.root)["firstwrite"]

            times = {peer.key: rounds(bench, f"first write, {kind}", peer, lambda peer=peer: once(peer))
                     for peer in unions(bench)}
        finally:
            image.close()
        parts.append({"title": f"First write to a {size} MiB lower file on {kind}: milliseconds", "head": ["", *times],
                      "rows": [["ms", *(None if t is None else 1000 * t for t in times.values())]], "goal": "5 ms"})
    return parts


class CacheGauge:
    """Page cache that is ours: charged to a memory cgroup of our own, else the machine's `Cached`."""

    def __init__(self):
        self.group = None
        for parent, file, word in (("/sys/fs/cgroup/memory", "memory.stat", "cache"), ("/sys/fs/cgroup", "memory.stat", "file"),
                                   ("/sys/fs/cgroup/unified", "memory.stat", "file")):
            group = Path(parent) / f"cowfs-bench-{time.time_ns()}"
            try:
                group.mkdir()
            except OSError:
                continue
            if (group / file).exists():
                self.parent, self.group, self.file, self.word = Path(parent), group, group / file, word
                (group / "cgroup.procs").write_text("0")
                return
            group.rmdir()

    def read(self):
        source, word = (self.file, self.word) if self.group else (Path("/proc/meminfo"), "Cached:")
        for text in source.read_text().splitlines():
            if text.split()[0] == word:
                return int(text.split()[1]) * (1 if self.group else 1024)
        return 0

    def close(self):
        if self.group:
            (self.parent / "cgroup.procs").write_text("0")
            self.group.rmdir()


def pagecache(bench):
    """Page-cache copies after four mounts have each read, or mapped, the same 200 MiB."""
    size, rows = max(200 // min(bench.args.divide, 4), 1), []
    file = bench.lower / "shared"
    run("dd", "if=/dev/urandom", f"of={file}", "bs=1M", f"count={size}")
    bench.image.settle()
    for how, workload in (("read", "seqread"), ("mmap", "mmap")):
        copies = []
        for peer in unions(bench):
            bench.say(f"page cache, {how}: {peer.label}", 0.0)
            gauge, mounts = CacheGauge(), []
            try:
                with open(file, "rb") as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                mounts = [bench.union(peer) for _ in range(4)]
                before = gauge.read()
                for union in mounts:
                    bench.driver(workload, union.root, "shared")
                copies.append((gauge.read() - before) / (size * MIB))
            except Failed as failure:
                bench.notes.append(f"{peer.label}, page cache: {failure}")
                copies.append(None)
            finally:
                for union in mounts:
                    union.__exit__()
                gauge.close()
        rows.append([how, *copies])
    file.unlink()
    how = f"Page-cache copies of {size} MiB after four mounts have seen it"
    return [{"title": how, "head": ["by", *(peer.key for peer in unions(bench))], "rows": rows, "goal": "1.1 copies"}]


def memory(bench):
    """PSS of idle daemons, after a walk over 25,000 names, and over a million creates and deletes."""
    many = max(200 // bench.args.divide, 10)
    churn = 1_000_000 // (bench.args.divide ** 2)
    names = bench.lower / "names"
    names.mkdir()
    bench.driver("fill", names, 24_750, 99)
    rows = []
    for peer in (peer for peer in bench.peers if peer.is_fuse):
        bench.say(f"memory: {peer.label}", 0.0)
        try:
            rows.append([peer.label, *among_many(bench, peer, many), *after_churn(bench, peer, churn)])
        except (Failed, OSError) as failure:
            bench.notes.append(f"{peer.label}, memory: {failure}")
            rows.append([peer.label, *[None] * 5])
    head = ["PSS in MiB", f"idle, one of {many}", "after walking 25,000 names", "and once forgotten",
            f"after {churn // 10:,} creates and deletes", f"after {churn:,}"]
    return [{"title": "Memory of a daemon", "head": head, "rows": rows, "goal": "idle 0.5 MiB, forgotten 2 MiB, no growth"}]


def among_many(bench, peer, many):
    """PSS of one of `many` daemons: idle (the mean), after a walk in its union, and once the kernel has forgotten it."""
    mounts = []
    try:
        for _ in range(many):
            mounts.append(bench.union(peer))
        idle = sum(pss(pid) for pid in daemons()) / many / MIB
        union = mounts[0]
        bench.driver("walk", union.root, "names")
        full = sum(pss(pid) for pid in union.pids) / MIB
        union.forget()
        return idle, full, settled_pss(union)
    finally:
        for union in mounts:
            union.__exit__()


def settled_pss(union):
    """After a moment for the daemon to hear what the kernel has forgotten."""
    time.sleep(1)
    return sum(pss(pid) for pid in union.pids) / MIB


def after_churn(bench, peer, count):
    """PSS after a tenth and after all of the creates and deletes."""
    with bench.union(peer) as union:
        found = []
        for part_count in (count // 10, count - count // 10):
            bench.driver("churn", union.root, part_count, timeout=1800)
            run("rmdir", union.root / "churn")
            union.forget()
            found.append(settled_pss(union))
        return found


def stall(bench):
    """The worst stat of an unrelated name while a 1 GiB file is copied up."""
    size = max(1024 // bench.args.divide, 128)
    file = bench.lower / "huge"
    run("dd", "if=/dev/urandom", f"of={file}", "bs=1M", f"count={size}")
    bench.image.settle()
    rows = []
    for peer in unions(bench):
        found = []

        def once():
            bench.driver("seqread", bench.lower, "huge")
            with bench.union(peer) as union:
                bench.image.settle()
                found.append(bench.driver("stall", union.root, "huge"))
                return found[-1]["stall_worst"]

        if rounds(bench, "stall", peer, once) is None:
            rows.append([peer.label, None, None, None])
            continue
        rows.append([peer.label, 1000 * max(f["stall_worst"] for f in found),
                     1000 * statistics.median(f["stall_p99"] for f in found), statistics.median(f["copyup"] for f in found)])
    file.unlink()
    return [{"title": f"stat of unrelated names during the copy-up of {size} MiB", "rows": rows, "goal": "worst below 10 ms",
             "head": ["peer", "worst ms, all rounds", "99th percentile ms", "copy-up s"]}]


def busy(bench):
    """Programs in mounts of their own, on a machine whose processors are wanted by others."""
    peers, rows = unions(bench), []
    for mounts, loops in ((1, 0), (2, 0), (4, 0), (1, 2), (1, 4), (2, 2), (4, 4)):
        what = f"{mounts} mounts, {loops} busy loops"
        row = [rounds(bench, what, peer, lambda peer=peer, m=mounts, n=loops: beside_loops(bench, peer, m, n)) for peer in peers]
        rows.append([what, *(None if seconds is None else seconds * 1e6 / bench.sizes["names"] for seconds in row)])
    return [{"title": "us a stat of a new name, one program a mount", "head": ["", *(peer.key for peer in peers)], "rows": rows,
             "goal": "no slower than without near"}]


def beside_loops(bench, peer, mounts, loops):
    """Seconds until a program in each of `mounts` has asked for every name once, beside endless loops."""
    with ExitStack() as ends:
        roots = [ends.enter_context(bench.union(peer)).root for _ in range(mounts)]
        bench.image.settle()
        for _ in range(loops):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            ends.callback(lambda loop=loop: (loop.kill(), loop.wait()))
        with ThreadPoolExecutor(mounts) as pool:
            return max(found["stat_first"] for found in pool.map(lambda root: bench.driver("stat", root), roots))
