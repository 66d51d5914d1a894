#!/bin/bash
# What makes a union better than its peers (tests/rows.py), in all four formats of marks: while it is done, after forget, after a
# remount, and done once more after it; and what only a shell can do: kill, fill, pivot, measure.
# timeout: 600
. "$(dirname "$0")/../lib.sh"
FORMATS="overlay oci unionfs unionfs-fuse"

mkdir lower ufs
/usr/bin/python3 "$TEST_DIR/rows.py" prepare lower || fail "the lower branch cannot be built"
tree lower exact | sed -E 's/ a-?[0-9]+( |$)/\1/' >lower.before

# rows DO|SHOW PHASE...
rows() {
	FORMAT=$format DAEMON=$(daemons) timeout -k 5 250 /usr/bin/python3 "$TEST_DIR/rows.py" "$1" ufs lower "${@:2}" >rows.out 2>&1 ||
		fail "$format: $* did not run to its end: $?"
	sed "s/^\(ok\|FAIL\) - /\1 - $format: /" rows.out
}
again() {
	check "$format: unmounts" unmount ufs
	no_daemon_left
	check "$format: mounts again" union -o "$options" "lower=RO:upper-$format=RW" ufs
}
for format in $FORMATS; do
	mkdir "upper-$format"
	options=cow,allow_other,suid,dev,whiteout=$format
	check "$format: mounts" union -o "$options" "lower=RO:upper-$format=RW" ufs
	rows do first
	rows show first
	echo 2 >/proc/sys/vm/drop_caches
	rows show first
	again
	rows show first
	rows do second
	rows show first second
	again
	rows show first second
	check "$format: unmounts" unmount ufs
	no_daemon_left
	tree lower exact | sed -E 's/ a-?[0-9]+( |$)/\1/' >lower.after
	same "$format: the lower is untouched" lower.before lower.after
done
# ---- row 2: how the daemon holds a lower -----------------------------------------------------------------------------------

for format in $FORMATS; do
	check "$format: mounts" union -o "cow,whiteout=$format" "lower=RO:upper-$format=RW" ufs
	exec 4<ufs/first/fidelity/mode 5<ufs/second/victims/passed 6<>ufs/first/numbers/untouched 7<ufs/first/control
	tree ufs >/dev/null
	python "$format" "$(daemons)" <<'PY'
import re

format, daemon = sys.argv[1:]
lower = {os.lstat(f"{at}/{n}").st_ino for at, ds, fs in os.walk("lower") for n in ds + fs}
held, writable = 0, []
for fd in os.listdir(f"/proc/{daemon}/fd"):
    if attempt(os.stat, f"/proc/{daemon}/fd/{fd}") == 0 and os.stat(f"/proc/{daemon}/fd/{fd}").st_ino in lower:
        held += 1
        flags = int(re.search(r"flags:\s*(\d+)", read_file(f"/proc/{daemon}/fdinfo/{fd}").decode())[1], 8)
        if flags & os.O_ACCMODE:
            writable.append((os.readlink(f"/proc/{daemon}/fd/{fd}"), oct(flags)))
check(f"{format}: it holds descriptors in the lower", held > 3, held)
equal(f"{format}: none of these {held} can be written", writable, [])
PY
	exec 4<&- 5<&- 6<&- 7<&-
	check "$format: unmounts" unmount ufs
	no_daemon_left
done

# ---- rows 4 and 11: killed in the middle -----------------------------------------------------------------------------------

mkdir torn
/usr/bin/python3 -c '
from lib import *
for n in range(8):
    write_file(f"torn/k{n}", pattern(f"k{n}", 2_000_000))
    write_file(f"torn/gone{n}", b"gone")
'
for format in $FORMATS; do
	mkdir "upper-k-$format"
	python "$format" <<'PY'
import random, signal, subprocess

format = sys.argv[1]
upper, chance, wrong, copied = f"upper-k-{format}", random.Random(format), [], 0
old = [pattern(f"k{n}", 2_000_000) for n in range(8)]


def mount():
    subprocess.run([os.environ["COWFS"], "-o", f"cow,allow_other,whiteout={format}", f"torn=RO:{upper}=RW", "ufs"], check=True, timeout=30)


def daemon():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/exe") == os.environ["COWFS"]:
                return int(pid)
        except OSError:
            pass


for turn in range(8):
    if turn % 4 == 0:
        subprocess.run(["rm", "-rf", upper]), os.mkdir(upper)
        deleted = []
    mount()
    pids = []
    for n in range(8):
        pid = os.fork()
        if pid == 0:
            code = attempt(append_file, f"ufs/k{n}", b"APPENDED")
            os._exit(0)
        pids.append(pid)
    time.sleep(chance.random() * 0.06)
    # Deleted, and the daemon dies before anything could be synced.
    if attempt(os.unlink, f"ufs/gone{turn}") == 0:
        deleted.append(turn)
    os.kill(daemon(), signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)
    subprocess.run(["umount", "ufs"], check=True)
    mount()
    for n in range(8):
        data = read_file(f"ufs/k{n}")
        more = data[len(old[n]):]
        copied += os.path.exists(f"{upper}/k{n}")
        if not data.startswith(old[n]) or more != b"APPENDED" * (len(more) // 8):
            wrong.append((turn, f"k{n} is torn", len(data)))
    listed = sorted(os.listdir("ufs"))
    want = sorted([f"k{n}" for n in range(8)] + [f"gone{n}" for n in range(8) if n not in deleted])
    if listed != want:
        wrong.append((turn, "listed", listed, want))
    left = [f"{at}/{n}" for at, _, fs in os.walk(f"{upper}/.cowfs") for n in fs if os.lstat(f"{at}/{n}").st_size > 8192]
    if left:
        wrong.append((turn, "left in the stage", left))
    subprocess.run(["umount", "ufs"], check=True)
    while daemon():
        time.sleep(0.01)
print(f"# {format}: {copied} of 64 times the copy was there")
equal(f"{format}: killed 8 times in copy-ups: each file whole, nothing left over, what was deleted stays so", wrong, [])
PY
done

# ---- row 11: a full upper --------------------------------------------------------------------------------------------------

mkdir huge && for n in 1 2 3; do fallocate -l 1G "huge/f$n"; done && echo more >huge/more && head -c 1000000 /dev/urandom >huge/data
for format in $FORMATS; do
	check "$format: a small disk" loop_fs ext4 24M "$T/full"
	mkdir full/upper
	check "$format: mounts" union -o "cow,whiteout=$format" "huge=RO:full/upper=RW" ufs
	dd if=/dev/zero of=ufs/ballast bs=64k 2>/dev/null
	dd if=/dev/zero of=ufs/ballast2 bs=1k 2>/dev/null
	sync -f full
	equal "$format: it is full" "$(stat -f -c %a ufs)" 0
	refuse "$format: nothing can be copied up" 'No space left' sh -c 'echo x >>ufs/data'
	/usr/bin/python3 - "$format" <<'PY'
from lib import *
took = []
for n in (1, 2, 3):
    began = time.monotonic()
    os.unlink(f"ufs/f{n}")
    took.append(time.monotonic() - began)
check(f"{sys.argv[1]}: three lower files of 1 GiB are deleted, in {min(took) * 1000:.1f} ms", min(took) < 1, took)
PY
	for round in "at once" "after a remount"; do
		equal "$format: they are gone, $round" "$(ls ufs | tr '\n' ' ')" "ballast ballast2 data more "
		check "$format: unmounts" unmount ufs
		no_daemon_left
		check "$format: mounts again" union -o "cow,whiteout=$format" "huge=RO:full/upper=RW" ufs
	done
	rm ufs/ballast
	sync -f full
	check "$format: with room all works" sh -c 'echo x >>ufs/data && echo new >ufs/f1'
	check "$format: unmounts" unmount ufs
	no_daemon_left
	umount full
done

# ---- row 15: a change of mode costs no data ---------------------------------------------------------------------------------

# By a copy without data where the format has it, else by a reflink where the filesystem has them.
check "a disk with reflinks" loop_fs xfs 3G "$T/reflink"
mkdir reflink/lower
for format in $FORMATS; do fallocate -l 600M "reflink/lower/$format-1" && echo data >"reflink/lower/$format-2"; done
for format in $FORMATS; do
	mkdir "reflink/upper-$format"
	check "$format: mounts" union -o "cow,whiteout=$format" "reflink/lower=RO:reflink/upper-$format=RW" ufs
	sync -f reflink
	before=$(stat -f -c %f reflink)
	began=$(date +%s%N)
	chmod 640 "ufs/$format-1" && chown 5:5 "ufs/$format-1"
	took=$((($(date +%s%N) - began) / 1000000))
	sync -f reflink
	check "$format: chmod and chown of 600 MiB take $took ms" test "$took" -lt 3000
	check "$format: and no room for data" test "$((before - $(stat -f -c %f reflink)))" -lt 2000
	for round in "at once" "after a remount"; do
		equal "$format: its facts, $round" "$(stat -c '%a %u %s' "ufs/$format-1") $(head -c 5 "ufs/$format-1" | xxd -p)" "640 5 629145600 0000000000"
		check "$format: unmounts" unmount ufs
		no_daemon_left
		check "$format: mounts again" union -o "cow,whiteout=$format" "reflink/lower=RO:reflink/upper-$format=RW" ufs
	done
	check "$format: unmounts" unmount ufs
	no_daemon_left
done
umount reflink

# ---- row 12: nobody waits for a copy-up -------------------------------------------------------------------------------------

mkdir -p stall/quiet upper-s && for n in {1..200}; do echo q >"stall/quiet/$n"; done
for n in 1 2 3 4; do dd if=/dev/zero of=stall/big$n bs=1M count=1024 2>/dev/null; done
sync
for round in "big1 big2" "big3 big4"; do
	check "mounts" union -o cow stall=RO:upper-s=RW ufs
	python $round <<'PY'
import shutil


def beside(what, name, deed):
    """How long unrelated requests take beside this; in ms, sorted."""
    pid = os.fork()
    if pid == 0:
        deed()
        os._exit(0)
    took, began, n = [], time.monotonic(), 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        n += 1
        start = time.monotonic()
        attempt(os.stat, f"ufs/quiet/{name}-{n}")
        os.stat(f"ufs/quiet/{n % 200 + 1}")
        took.append(time.monotonic() - start)
        time.sleep(0.001)
    took = [round(t * 1000, 1) for t in sorted(took)]
    print(f"# {what} of 1 GiB took {time.monotonic() - began:.1f} s; {n} requests beside it: the worst {took[-1]} ms, 99 of 100 under {took[n * 99 // 100]} ms")
    return took


def plain_copy(name):
    shutil.copyfile(f"stall/{name}", "upper-s-plain")
    os.sync()
    os.unlink("upper-s-plain")


# Others may be at work on this machine, so a few requests may wait for a processor, and once many; then a plain copy, with
# which no request has anything to do, tells what is the machine's part.
limit = 10
for name in sys.argv[1:]:
    took = beside("a copy-up", name, lambda: append_file(f"ufs/{name}", b"x"))
    equal("the copy is whole", (os.stat(f"ufs/{name}").st_size, os.stat(f"upper-s/{name}").st_size), ((1 << 30) + 1, (1 << 30) + 1))
    most = took[len(took) * 99 // 100] if len(took) > 20 else 0
    if 0 < most < limit:
        break
    plain = beside("a plain copy", name, lambda: plain_copy(name))
    limit = max(limit, 10 * plain[len(plain) * 99 // 100])
    if 0 < most < limit:
        break
check(f"99 of 100 unrelated requests take less than {limit} ms beside a copy-up of 1 GiB", 0 < most < limit, took[-20:])
for name in ("big1", "big2", "big3"):
    if os.path.exists(f"upper-s/{name}"):
        equal(f"what is copied up stays whole ({name})", os.stat(f"ufs/{name}").st_size, (1 << 30) + 1)
PY
	check "unmounts" unmount ufs
	no_daemon_left
done
rm -rf stall upper-s

# ---- row 18: names are cheap ------------------------------------------------------------------------------------------------

deep=1/2/3/4/5/6/7/8
for branch in names-a names-b names-u; do
	mkdir -p "$branch/$deep" "$branch/many"
	(cd "$branch/many" && /usr/bin/python3 -c 'import sys; [open(f"{sys.argv[1]}{n:05}", "w").close() for n in range(int(sys.argv[2]))]' "$branch" $([ $branch = names-u ] && echo 4000 || echo 8000))
done
for n in {1..50}; do echo x >"names-b/$deep/f$n"; done
# fastest COMMAND...: milliseconds of the fastest of three, with all forgotten before each.
fastest() {
	local best=99999 round began took
	for round in 1 2 3; do
		sync && echo 2 >/proc/sys/vm/drop_caches
		began=$(date +%s%N)
		"$@" >/dev/null
		took=$((($(date +%s%N) - began) / 1000000))
		[ $took -ge $best ] || best=$took
	done
	echo $best
}
mkdir names.work && cp -a names-u names
mount -t overlay names -o lowerdir=names-a:names-b,upperdir=names,workdir=names.work ufs
bar=$(fastest ls -l ufs/many)
umount ufs
# How often a branch was asked so far; how many requests there were, what the kernel forgets meanwhile among them.
asks() { grep -acE ' (statx|newfstatat|fstat|openat|openat2|getxattrat|fgetxattr|lgetxattr|getxattr|readlinkat|getdents64|name_to_handle_at)\(' calls; }
requests() { grep -acE ' (read\([0-9]+, |<\.\.\. read resumed>).* = [0-9]+$' calls; }
for format in $FORMATS; do
	rm -rf names && cp -a names-u names
	check "$format: mounts" union -o "cow,whiteout=$format" names-a=RO:names-b=RO:names=RW ufs
	equal "$format: 20,000 names of three branches" "$(ls ufs/many | wc -l)" 20000
	if [ $format = overlay ]; then
		took=$(fastest ls -l ufs/many)
		# ls(1) asks for two attributes of each file, which no listing can bring; overlayfs is asked nothing. A machine with
		# other work to do makes each question slower.
		check "ls -l of them, forgotten, takes $took ms (overlayfs: $bar)" test "$took" -le $((bar * 10))
	fi
	for round in "at first" "after a remount"; do
		rm -f calls
		stat "ufs/$deep" >/dev/null
		strace -f -qq -s 0 -o calls -p "$(daemons)" &
		tracer=$!
		for i in {1..300}; do
			[ ! -s calls ] || break
			stat "ufs/none$i" >/dev/null 2>&1
			sleep 0.1
		done
		stat ufs/$deep >/dev/null
		before=$(settled asks)
		(cd "ufs/$deep" && stat -c %i f{1..50} none{1..50} >/dev/null 2>&1)
		asked=$(($(settled asks) - before))
		check "$format: 100 look-ups nine deep in three branches, $round, ask $asked times, not more than 2 a branch" test "$asked" -gt 100 -a "$asked" -le 600
		echo 2 >/proc/sys/vm/drop_caches
		before=$(settled requests)
		equal "$format: names and attributes, $round" "$(/usr/bin/python3 -c 'import os; print(sum(e.stat(follow_symlinks=False).st_size == 0 for e in os.scandir("ufs/many")))')" 20000
		made=$(($(settled requests) - before))
		check "$format: of 20,000 files, each asked for when it is read, come with $made requests, $round" test "$made" -gt 20 -a "$made" -lt 5000
		kill -INT $tracer && wait $tracer 2>/dev/null
		check "$format: unmounts" unmount ufs
		no_daemon_left
		check "$format: mounts again" union -o "cow,whiteout=$format" names-a=RO:names-b=RO:names=RW ufs
	done
	check "$format: unmounts" unmount ufs
	no_daemon_left
done

# ---- conformance: mount -o remount -------------------------------------------------------------------------------------------

for format in $FORMATS; do
	check "$format: mounts" union -o "cow,whiteout=$format" "lower=RO:upper-$format=RW" ufs
	for round in "at first" "after a remount"; do
		check "$format: remount,ro $round" "$COWFS" -o remount,ro "lower=RO:upper-$format=RW" ufs
		refuse "$format: nothing can be written, $round" 'Read-only' sh -c 'echo x >>ufs/first/control/f'
		check "$format: remount,rw $round" "$COWFS" -o remount,rw "lower=RO:upper-$format=RW" ufs
		check "$format: it can again, $round" touch ufs/first/control/f
		equal "$format: one daemon, $round" "$(daemons | wc -w)" 1
		check "$format: unmounts" unmount ufs
		no_daemon_left
		check "$format: mounts again" union -o "cow,whiteout=$format" "lower=RO:upper-$format=RW" ufs
	done
	check "$format: unmounts" unmount ufs
	no_daemon_left
done

# ---- row 8: a lower that is cut under a map ----------------------------------------------------------------------------------

for format in $FORMATS; do
	rm -rf cut upper-m && mkdir cut upper-m && head -c 300000 /dev/zero >cut/passed && yes text | head -c 300000 >cut/text
	check "$format: mounts" union -o "cow,whiteout=$format" cut=RO:upper-m=RW ufs
	python "$format" <<'PY'
import signal
for name in ("passed", "text"):
    fd = os.open(f"ufs/{name}", os.O_RDONLY)
    view = mmap.mmap(fd, 300000, mmap.MAP_SHARED, mmap.PROT_READ)
    view[0]
    os.truncate(f"cut/{name}", 0)
    drop_caches()
    pid = os.fork()
    if pid == 0:
        for page in range(0, 300000, 4096):
            view[page]
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    check(f"{sys.argv[1]}: a map of a lower file ({name}) that was cut: the old page, or SIGBUS", status in (0, signal.SIGBUS, signal.SIGBUS | 128), status)
    works(f"{sys.argv[1]}: reading it is answered", os.pread, fd, 100, 200000)
PY
	check "$format: the daemon lives" sh -c 'echo new >ufs/new && [ "$(cat ufs/new)" = new ]'
	check "$format: unmounts" unmount ufs
	no_daemon_left
	check "$format: mounts again" union -o "cow,whiteout=$format" cut=RO:upper-m=RW ufs
	equal "$format: after a remount they are empty, and can be written" "$(cat ufs/passed ufs/text; echo x >>ufs/text; cat ufs/text)" x
	check "$format: unmounts" unmount ufs
	no_daemon_left
done

# ---- row 3: the union as the root, without /proc ---------------------------------------------------------------------------

mkdir -p ns/root/{bin,old,dir,tmp} ns/cow && cp "$(command -v busybox)" ns/root/bin/busybox && cp -a /bin/true ns/root/dir/program
for applet in sh chmod chown mv ln cp rm mkdir touch cat ls stat sync setfattr getfattr umount sleep; do ln -s busybox "ns/root/bin/$applet"; done
for n in 1 2 3 4 5 6; do echo "lower $n" >"ns/root/dir/f$n"; done
cat >ns/root/session <<'EOS'
set -e
umount -l /old
! [ -e /proc ]
cd /dir
chmod 4751 f1 && chown 5:6 f1 && chmod 4751 f1
touch -d '1999-01-01 00:00:00' f2
mv f3 moved && ln f4 linked && echo more >>f4
# As a package manager installs.
cp f5 f5.new && chmod 600 f5.new && sync && ln f5 f5.old && mv f5.new f5 && echo installed >>f5 && rm f5.old
rm f6 && mkdir f6 && echo in >f6/in
mv /dir/program /bin/program
echo session ended
EOS
cat >customer <<'EOS'
"$COWFS" -ocow,chroot=$T/ns,default_permissions,allow_other,suid,dev,whiteout=$format /root=RO:/cow/$format=RW $T/ufs || exit 1
cd "$T/ufs" && pivot_root . old && exec /bin/busybox chroot . /bin/sh $1
EOS
customer() { format=$format timeout -k 2 150 unshare -mpf --mount-proc --propagation private --kill-child=KILL bash customer "$1" 2>&1; }
tree ns/root exact >root.before
export T
for format in $FORMATS; do
	mkdir "ns/cow/$format"
	equal "$format: a session in the pivoted root, without /proc" "$(customer /session)" "session ended"
	no_daemon_left
	check "$format: mounts again" union -o "cow,suid,chroot=$T/ns" "/root=RO:/cow/$format=RW" "$T/ufs"
	equal "$format: all of it is there after a remount" \
		"$(cd ufs/dir && ls | tr '\n' ' ' && stat -c '%a %u %g' f1 && stat -c %Y f2 && cat moved linked f5 f6/in && stat -c %h f4 && test -x ../bin/program && echo program)" \
		"$(printf '%s\n' 'f1 f2 f4 f5 f6 linked moved 4751 5 6' 915148800 'lower 3' 'lower 4' more 'lower 5' installed in 2 program)"
	check "$format: unmounts" unmount ufs
	no_daemon_left
	echo 'umount -l /old; echo ready; while echo x >>/tmp/f$$ && cat /dir/f2 >/tmp/out; do :; done 2>/tmp/err; echo freed' >ns/root/victim
	customer /victim >victim.out &
	victim=$!
	for i in {1..300}; do grep -qs ready victim.out && break || sleep 0.1; done
	sleep 0.2
	began=$SECONDS
	kill -KILL $(daemons)
	wait $victim
	check "$format: kill -9 of the daemon frees who works in it" test "$(tr '\n' ' ' <victim.out)" = "ready freed " -a $((SECONDS - began)) -lt 60
	no_daemon_left
	rm ns/root/victim
done
tree ns/root exact | grep -v "^b'\.'" >root.after
same "the shared root is untouched" <(grep -v "^b'\.'" root.before) root.after

finish
