#!/bin/bash
# SIGKILL of the daemon in the middle of copy-ups, writes, deletions and renames, many times: a new mount just works, each
# name shows what it showed before or what it shows after, nothing is lost, and the stage is swept.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=250

ROUNDS=${1:-40}
mkdir lower upper ufs
python <<'EOF2'
for n in range(40):
    write_file(f"lower/append{n}", pattern(f"append{n}", 3_000_000 if n % 4 == 0 else 200_000))
    write_file(f"lower/chmod{n}", pattern(f"chmod{n}", 500_000))
    write_file(f"lower/delete{n}", pattern(f"delete{n}", 3000))
    write_file(f"lower/move{n}", pattern(f"move{n}", 300_000))
    write_file(f"lower/replace{n}", pattern(f"replace{n}", 300_000))
    os.makedirs(f"lower/tree{n}/deep/er")
    write_file(f"lower/tree{n}/deep/er/leaf", pattern(f"leaf{n}", 2000))
    os.makedirs(f"lower/dir{n}")
    write_file(f"lower/dir{n}/child", b"child")
    write_file(f"lower/link{n}", pattern(f"link{n}", 100_000))
    os.link(f"lower/link{n}", f"lower/link{n}b")
EOF2
tree lower exact >lower.before
cat >round.py <<'EOF2'
from lib import *
import hashlib
import random
import shutil
import signal
import subprocess

round = int(sys.argv[1])
chance = random.Random(round)
top, cowfs = "ufs", os.environ["COWFS"]
problems = []


def daemon():
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                if os.readlink(f"/proc/{pid}/exe") == cowfs:
                    return int(pid)
            except OSError:
                pass
    return None


def mount():
    done = subprocess.run([cowfs, "-o", "cow,allow_other", "lower=RO:upper=RW", top], capture_output=True, timeout=30)
    if done.returncode:
        problems.append(f"a new mount fails: {done.stderr.decode()}")


def worker(kind):
    """Goes through its kind of names until the daemon is gone."""
    order = list(range(40))
    random.Random(f"{round}{kind}").shuffle(order)
    for n in order:
        try:
            match kind:
                case "append":
                    append_file(f"{top}/append{n}", b"APPENDED")
                case "chmod":
                    os.chmod(f"{top}/chmod{n}", 0o600)
                case "delete":
                    os.unlink(f"{top}/delete{n}")
                case "move":
                    os.rename(f"{top}/move{n}", f"{top}/moved{n}")
                case "replace":
                    write_file(f"{top}/new{n}", pattern(f"new{n}", 200_000))
                    os.rename(f"{top}/new{n}", f"{top}/replace{n}")
                case "tree":
                    shutil.rmtree(f"{top}/tree{n}")
                    os.mkdir(f"{top}/tree{n}")
                case "dir":
                    os.rename(f"{top}/dir{n}", f"{top}/renamed{n}")
                case "link":
                    append_file(f"{top}/link{n}", b"APPENDED")
        except OSError:
            return


def bad(name, what):
    problems.append(f"{name}: {what}")


def grown(data, old):
    """The old content, and behind it what some rounds appended, each time whole."""
    more = data[len(old):]
    return data.startswith(old) and more == b"APPENDED" * (len(more) // 8)


def verify():
    for n in range(40):
        data, old = read_file(f"{top}/append{n}"), pattern(f"append{n}", 3_000_000 if n % 4 == 0 else 200_000)
        if not grown(data, old):
            bad(f"append{n}", f"{len(data)} bytes, {hashlib.sha1(data).hexdigest()}")
        if read_file(f"{top}/chmod{n}") != pattern(f"chmod{n}", 500_000):
            bad(f"chmod{n}", "content")
        if os.path.exists(f"{top}/delete{n}") and read_file(f"{top}/delete{n}") != pattern(f"delete{n}", 3000):
            bad(f"delete{n}", "content")
        places = [p for p in (f"{top}/move{n}", f"{top}/moved{n}") if os.path.exists(p)]
        if len(places) != 1:
            bad(f"move{n}", f"is in {len(places)} places")
        for place in places:
            if read_file(place) != pattern(f"move{n}", 300_000):
                bad(place, "content")
        data = read_file(f"{top}/replace{n}")
        if data not in (pattern(f"replace{n}", 300_000), pattern(f"new{n}", 200_000)):
            bad(f"replace{n}", f"{len(data)} bytes")
        if os.path.exists(f"{top}/tree{n}/deep/er/leaf") and read_file(f"{top}/tree{n}/deep/er/leaf") != pattern(f"leaf{n}", 2000):
            bad(f"tree{n}", "content")
        places = [p for p in (f"{top}/dir{n}", f"{top}/renamed{n}") if os.path.exists(p)]
        if len(places) != 1 or os.listdir(places[0]) != ["child"]:
            bad(f"dir{n}", [(p, os.listdir(p)) for p in places])
        one, two = read_file(f"{top}/link{n}"), read_file(f"{top}/link{n}b")
        if not grown(one, pattern(f"link{n}", 100_000)) or one != two:
            bad(f"link{n}", f"{len(one)} and {len(two)} bytes")
        if os.stat(f"{top}/link{n}").st_nlink != 2:
            bad(f"link{n}", f"{os.stat(f'{top}/link{n}').st_nlink} links")


def sizes():
    """Bytes in regular files of the private area, by name."""
    return {f"{at}/{n}": os.lstat(f"{at}/{n}").st_size for at, _, fs in os.walk("upper/.cowfs") for n in fs
            if stat.S_ISREG(os.lstat(f"{at}/{n}").st_mode)}


# On what earlier rounds left: kill during a mount that already holds half of the changes.
if round % 4 == 0:
    shutil.rmtree("upper")
    os.mkdir("upper")
mount()
kinds = ["append", "chmod", "delete", "move", "replace", "tree", "dir", "link"]
workers = []
for kind in kinds:
    pid = os.fork()
    if pid == 0:
        try:
            worker(kind)
        finally:
            os._exit(0)
    workers.append(pid)
time.sleep(chance.choice([0.002, 0.01, 0.03, 0.08, 0.2, 0.5]) * (0.5 + chance.random()))
os.kill(daemon(), signal.SIGKILL)
deadline = time.monotonic() + 60
for pid in workers:
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            problems.append("a process is stuck after SIGKILL of the daemon")
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.005)
if subprocess.run(["umount", top]).returncode:
    problems.append("umount after SIGKILL fails")
torn = sizes()
mount()
if not problems:
    verify()
    # The index keeps one copy for each lower file of several names, and serves it even before a name leads to it. Anything
    # else is a leftover of the stage.
    kept, index = sizes(), "upper/.cowfs/index/"
    leftover = {n: s for n, s in kept.items() if s > 4096 and not n.startswith(index)}
    if sum(n.startswith(index) for n in kept) > 40:
        bad("the index", "holds more than one copy of a file")
    if leftover:
        bad("the stage", f"is not swept: {leftover}")
    listed = sorted(os.listdir(top))
    odd = [n for n in listed if not n.rstrip("0123456789b").isalpha()]
    if odd:
        bad("listing", odd)
    # The half-done work goes on.
    for n in range(40):
        append_file(f"{top}/append{n}", b"")
        attempt(os.unlink, f"{top}/delete{n}")
if subprocess.run(["umount", top]).returncode:
    problems.append("umount fails")
while daemon():
    time.sleep(0.01)
print(f"# round {round}: {len(torn)} files were in the private area")
check(f"round {round}", not problems, "; ".join(problems)[:1500])
EOF2
for round in $(seq 0 $((ROUNDS - 1))); do
	timeout -k 5 150 /usr/bin/python3 round.py "$round" || fail "round $round ended with status $?"
	# A round that failed may have left its mount.
	while is_mounted "$T/ufs"; do umount -l ufs; done
done
tree lower exact >lower.after
same "the lower is untouched" lower.before lower.after
finish
