"""Real programs on the union: archives, git, compilers, interpreters, databases, package managers.

Each gets a lower prepared once, a fresh mount a round, and is timed as a user would feel it. What this machine cannot
run is named in the notes with its reason.
"""

import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from ground import Failed, run

IMPORTS = ("asyncio, argparse, ast, bz2, collections, concurrent.futures, csv, ctypes, dataclasses, datetime, decimal, "
           "difflib, doctest, email.mime.text, fractions, ftplib, http.server, imaplib, inspect, json, logging.handlers, "
           "mailbox, multiprocessing, pdb, pickle, platform, plistlib, pydoc, random, smtplib, sqlite3, ssl, statistics, "
           "tarfile, tempfile, unittest.mock, urllib.request, uuid, wsgiref.simple_server, xml.dom.minidom, zipfile")


def shell(script, at, env=None, timeout=600):
    """Runs a shell script in a directory; raises Failed with its messages."""
    run("bash", "-euo", "pipefail", "-c", script, cwd=at, env={**os.environ, **(env or {})}, timeout=timeout)


# ---- lowers; each returns nothing, or raises Failed or OSError when the machine cannot

def make_git(bench, at):
    """A repository of the tree's files: 20,000 of them, and a branch that changes 3,000."""
    shutil.copytree(bench.lower / "tree", at)
    # Copied packages may bring their own .gitignore: all files count.
    shell("git init -q -b main . && git config user.name bench && git config user.email bench@localhost && git config gc.auto 0 "
          "&& git add -A -f . && git commit -q -m one && git checkout -q -b other "
          "&& git ls-files -z | awk 'BEGIN { RS = ORS = \"\\0\" } NR % 7 == 0' | head -z -n 3000 "
          "| while IFS= read -r -d '' name; do echo changed >> \"$name\"; done; "
          "git commit -q -a -m two && git checkout -q main && sleep 1.1 && git update-index -q --refresh", at)


def make_cargo(bench, at):
    """The work loop's own package with its dependencies beside it, so that nothing is fetched."""
    source = Path(__file__).parent / "driver"
    at.mkdir()
    for name in ("Cargo.toml", "Cargo.lock", "src"):
        (shutil.copytree if (source / name).is_dir() else shutil.copy2)(source / name, at / name)
    shell("mkdir .cargo && cargo vendor --quiet --locked vendor > .cargo/config.toml", at)


def make_python(bench, at):
    """A whole standard library, as PYTHONHOME wants it."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    ignore = shutil.ignore_patterns("site-packages", "dist-packages", "test", "idlelib", "config-*", "ensurepip")
    shutil.copytree(stdlib, at / "lib" / stdlib.name, ignore=ignore)
    dynload = Path(sysconfig.get_config_var("DESTSHARED") or stdlib / "lib-dynload")
    if dynload.parent != stdlib:
        shutil.copytree(dynload, at / "lib" / stdlib.name / "lib-dynload", dirs_exist_ok=True)
    shell(f"PYTHONHOME=$PWD {sys.executable} -c 'import {IMPORTS}'", at)


def make_exec(bench, at):
    """A root with /bin/true and the libraries it names."""
    paths = [word for line in run("ldd", "/bin/true").stdout.splitlines() for word in line.split() if word.startswith("/")]
    for path in ["/bin/true", *paths]:
        target = at / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def make_postgres(bench, at):
    """A cluster with pgbench's tables."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        raise Failed("PostgreSQL is not installed")
    at.mkdir()
    shutil.chown(at, "postgres", "postgres")
    bench.postgres = str(programs[-1])
    shell(f"runuser -u postgres -- {bench.postgres}/initdb -N -D data > /dev/null", at)
    shell(postgres(bench, f"{bench.postgres}/pgbench -q -i -s 5 -h /tmp postgres"), at)


def postgres(bench, inside):
    """A script that runs `inside` while a server serves the cluster."""
    as_user = "runuser -u postgres --"
    control = f"{as_user} {bench.postgres}/pg_ctl -s -w -D data"
    return (f"{control} -o '-k /tmp -h \"\"' -l data/log start; trap '{control} -m fast stop' EXIT; "
            f"{as_user} {inside} > /dev/null 2>&1")


def make_apt(bench, at):
    """A small Debian with the packages to install already fetched; kept in the cache between runs."""
    kept = Path(bench.args.cache) / "debian-root"
    if not (kept / "ready").exists():
        if not shutil.which("debootstrap"):
            raise Failed("debootstrap is not installed")
        shutil.rmtree(kept, ignore_errors=True)
        bench.say("debootstrap")
        run("debootstrap", "--variant=minbase", "bookworm", kept, timeout=900)
        shutil.copy("/etc/resolv.conf", kept / "etc/resolv.conf")
        for setting in Path("/etc/apt/apt.conf.d").iterdir():
            if "Proxy" in setting.read_text():
                shutil.copy(setting, kept / "etc/apt/apt.conf.d")
        (kept / "etc/apt/apt.conf.d/99-keep").write_text('Binary::apt::APT::Keep-Downloaded-Packages "true";\n')
        shell("chroot . apt-get -qq update && chroot . apt-get -qq -y -d --no-install-recommends install git", kept, timeout=900)
        (kept / "ready").touch()
    run("cp", "-a", kept, at)


# ---- what is timed

def timed(bench):
    """(label, directory in the lower, what makes it, script run there, environment)"""
    some = max(1000 // bench.args.divide, 50)
    starts = max(20 // bench.args.divide, 3)
    python = {"PYTHONDONTWRITEBYTECODE": "1"}
    apt = "DEBIAN_FRONTEND=noninteractive chroot . apt-get -qq -y --no-download --no-install-recommends install git"
    transactions = max(2000 // bench.args.divide, 200)
    return [
        ("tar cf - | cat of the tree", "tree", None, "tar cf - . | cat > /dev/null", None),
        ("git status", "programs/git", make_git, 'test -z "$(git --no-optional-locks status --porcelain)"', None),
        ("git checkout (3,000 files change)", "programs/git", make_git, "git checkout -q other", None),
        ("cargo build", "programs/cargo", make_cargo, "cargo build --quiet --offline --target-dir target", None),
        (f"Python with many imports, {starts} times", "programs/python", make_python,
         f"export PYTHONHOME=$PWD; for n in $(seq {starts}); do {sys.executable} -c 'import {IMPORTS}'; done", python),
        (f"exec /bin/true, {some} times", "programs/exec", make_exec, f"{bench.driver_program} exec . {some} /bin/true", None),
        (f"pgbench, {transactions} transactions", "programs/postgres", make_postgres, f"pgbench -n -c 2 -t {transactions // 2} -h /tmp postgres", None),
        ("apt-get install git in a chroot", "programs/apt", make_apt, apt, None),
    ]


def once(bench, peer, directory, script, env):
    """Seconds of one program on a fresh mount; natively on a copy, made just before."""
    options = ["suid", "dev"] if peer.is_fuse else []
    with bench.union(peer, options=options) as union:
        at = union.root / directory
        if peer.key == "native":
            at.parent.mkdir(exist_ok=True)
            run("cp", "-a", bench.lower / directory, at)
            if directory.endswith("git"):
                shell("git update-index -q --refresh", at)
        bench.image.settle()
        if directory.endswith("postgres"):
            return with_server(bench, at, script)
        start = time.perf_counter()
        try:
            shell(script, at, env)
        except Failed:
            union.kill()
            raise
        return time.perf_counter() - start


def with_server(bench, at, script):
    """Seconds of the client alone: the server is started before and stopped after."""
    clock = bench.scratch / "clock"
    clock.touch()
    shutil.chown(clock, "postgres")
    inside = f"bash -c 'start=$EPOCHREALTIME; {bench.postgres}/{script}; echo $start $EPOCHREALTIME > {clock}'"
    shell(postgres(bench, inside), at)
    start, end = map(float, clock.read_text().split())
    return end - start


def programs(bench):
    """tar, git, cargo, Python, exec, pgbench and apt on the union."""
    (bench.lower / "programs").mkdir()
    missing, rows, keys = {}, [], [peer.key for peer in bench.peers]
    for label, directory, make, script, env in timed(bench):
        bench.say(f"preparing {label}", 0.0)
        at = bench.lower / directory
        try:
            if make and directory not in missing and not at.exists():
                make(bench, at)
        except (Failed, OSError, subprocess.SubprocessError) as failure:
            missing[directory] = str(failure)
        if directory in missing:
            bench.notes.append(f"left out: {label}: {missing[directory]}")
            continue
        bench.image.settle()
        seconds = {key: [] for key in keys}
        for number in range(bench.args.rounds):
            for peer in bench.peers:
                bench.say(f"{label}, round {number + 1}: {peer.label}", 0.0)
                try:
                    seconds[peer.key].append(once(bench, peer, directory, script, env))
                except (Failed, OSError) as failure:
                    bench.notes.append(f"{peer.label}, {label}: {failure}")
        medians = {key: statistics.median(values) for key, values in seconds.items() if values}
        base, ours = medians.get("overlay"), medians.get("cowfs")
        verdict = "-"
        if base and ours:
            beaten = [key for key in ("unionfs", "fo1", "fo2") if medians.get(key, ours) < ours]
            verdict = f"{ours / base:.2f} " + ("ok" if ours / base <= 1.25 else "MISS") + "".join(f", behind {k}" for k in beaten)
        rows.append([label, *(medians.get(key) for key in keys), verdict])
    return [{"title": "Real programs: seconds", "head": ["program", *keys, "cowfs / overlay"], "rows": rows,
             "goal": "at most 1.25 times kernel overlayfs, and faster than every FUSE peer"}]
