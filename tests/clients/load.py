"""Load on a union: reads what the lower has and compares, writes, syncs, deletes, renames, lists; every answer is checked.

load.py UNION REFERENCE TOLD STOP: until the file STOP is there. What was synced goes to the file TOLD, outside the union; its name ends
as that of the directory that this load has for itself. Ends with status 1 and a line at the first error or wrong answer.
"""

import errno
import os
import sys
import time

union, reference, told, stop = sys.argv[1:]
name = os.path.basename(told)
own = f"many-{name[-1]}"
share = sorted(os.listdir(f"{reference}/{own}"))
content = {n: open(f"{reference}/{own}/{n}", "rb").read() for n in share}
gone = set()
safe = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
log = os.open(f"{union}/log-{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
counts = dict(read=0, written=0, deleted=0, listed=0, worst=0)
last = -1


def wrong(text):
    sys.exit(f"step {number}: {text}")


def step():
    global last
    pick = share[number * 7 % len(share)]
    path = f"{union}/{own}/{pick}"
    try:
        with open(path, "rb") as file:
            if pick in gone:
                wrong(f"{pick} was deleted and is there")
            if file.read() != content[pick]:
                wrong(f"{pick} has another content")
    except FileNotFoundError:
        if pick not in gone:
            wrong(f"{pick} looks deleted")
    counts["read"] += 1
    if os.path.lexists(f"{union}/never-{number % 5}"):
        wrong("a name that nobody made is there")

    fresh = f"{union}/made/{name}-{number}"
    with open(fresh + ".part", "wb") as file:
        file.write(b"%d\n" % number * 50)
        file.flush()
        os.fsync(file.fileno())
    os.rename(fresh + ".part", fresh)
    if open(fresh, "rb").read() != b"%d\n" % number * 50:
        wrong("what was just written is not there")
    os.write(log, b"%d\n" % number)
    os.fsync(log)
    os.write(safe, b"%d\n" % number)
    counts["written"] += 1

    if number % 9 == 0 and len(gone) < len(share) // 2:
        victim = share[len(gone)]
        os.unlink(f"{union}/{own}/{victim}")
        gone.add(victim)
        counts["deleted"] += 1
    if number % 5 == 0:
        shown = set(os.listdir(f"{union}/{own}"))
        if shown != set(share) - gone:
            wrong(f"listed wrongly: {sorted(shown ^ (set(share) - gone))[:5]}")
        counts["listed"] += 1


number = 0
while not os.path.exists(stop):
    number += 1
    began = time.monotonic()
    try:
        step()
    except OSError as error:
        wrong(f"{errno.errorcode.get(error.errno)}: {error}")
    counts["worst"] = max(counts["worst"], round(time.monotonic() - began, 1))
print(f"{number} steps {counts}")

# All that was told to be safe, in files and log.
for line in open(told):
    n = int(line)
    if open(f"{union}/made/{name}-{n}", "rb").read() != b"%d\n" % n * 50:
        wrong(f"lost: {n}")
if [int(line) for line in open(f"{union}/log-{name}")] != [int(line) for line in open(told)]:
    wrong("the log has not what was written")
