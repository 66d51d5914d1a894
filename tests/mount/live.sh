#!/bin/bash
# remount,branches=: a mounted union gets other lower branches while tenants work in it. Nothing outside them is disturbed, what
# is new is seen at once, and nobody but who could ptrace the daemon can do it.
# timeout: 600
. "$(dirname "$0")/../lib.sh"

mkdir .test/bin && cp .test/cowfs .test/bin && mount --bind .test/bin /usr/local/bin
mkdir .test/sbin .test/sbin.work
mount -t overlay sbin -o "lowerdir=/usr/sbin,upperdir=$T/.test/sbin,workdir=$T/.test/sbin.work" /usr/sbin
ln -s /usr/local/bin/cowfs /usr/sbin/mount.cowfs
ln -s /usr/local/bin/cowfs /usr/sbin/mount.fuse.cowfs
make_user || fail "no user could be made"

mkdir -p base/{stable/{1,2,3},work,swap,proc,dev} a/swap/{both,only-a} b/swap/{both,only-b} c/swap up mnt other
for d in 1 2 3; do for f in {1..20}; do echo "$d $f" >base/stable/$d/$f; done; done
for x in a b c; do
	for f in who gone changed; do echo $x >$x/swap/$f; done
	echo $x >$x/swap/only-in-$x
done
echo a >a/swap/both/a && echo b >b/swap/both/b && echo a >a/swap/kind && mkdir b/swap/kind
echo base >base/swap/base
M=$T/mnt
LOG=$T/.test/log
# to LIST [OPTION]: the exchange.
to() { timeout -k 2 20 "$COWFS" -o "remount,branches=$1${2:+,$2}" "$M"; }
said() { tail -n +"$((MARK + 1))" "$LOG" | grep 'branches changed'; }
mark() { MARK=$(wc -l <"$LOG"); }
flags() { awk -v dir="$1" '$5 == dir { split($0, half, " - "); split(half[2], all, " "); print $6 " | " all[3] }' /proc/self/mountinfo; }
# exactly DIR: all but the access times, since the test itself reads there.
exactly() { tree "$1" exact | sed -E 's/ a[0-9]+( [0-9a-f]+)?$/\1/'; }
for x in a b base; do exactly $x >$x.before; done

# ---- under load, in every format ---------------------------------------------------------------------------------------

cat >.test/load.py <<'P'
import itertools, subprocess, threading, traceback
COWFS, T = os.environ["COWFS"], os.environ["T"]
form, rounds = sys.argv[1], int(sys.argv[2])
M = T + "/mnt"
LIST = {name: f"{T}/{name}" for name in ("a", "b", "c", "base")}

def go(names):
    """Exchanges the lowers; the upper is named now and then."""
    go.count += 1
    upper = [f"{T}/up=RW"] if go.count % 2 else []
    listed = ":".join([LIST[name] + "=RO" for name in names] + upper)
    done = subprocess.run([COWFS, "-o", "remount,branches=" + listed, M], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(f"{names}: {done.stderr}")
go.count = 0

def expected(names):
    """What `swap` holds over these lowers: name -> content, or the names in a directory."""
    shown = {}
    for name in reversed(names):
        path = f"{LIST[name]}/swap"
        for entry in os.listdir(path):
            if os.path.isdir(f"{path}/{entry}"):
                below = shown.get(entry)
                old = below if isinstance(below, set) else set()
                shown[entry] = old | set(os.listdir(f"{path}/{entry}"))
            else:
                shown[entry] = read_file(f"{path}/{entry}")
    shown.pop("gone", None)
    shown.update(mine=b"mine\n", changed=b"changed\n")
    return shown

def seen():
    shown = {}
    for entry in os.listdir(M + "/swap"):
        path = f"{M}/swap/{entry}"
        shown[entry] = set(os.listdir(path)) if os.path.isdir(path) else read_file(path)
    return shown

# Who works meanwhile. Each is a process; what it cannot do goes to the file `errors`.
def stat_all():
    for d in "123":
        for f in range(1, 21):
            assert os.stat(f"{M}/stable/{d}/{f}").st_size == len(f"{d} {f}\n")
def read_all():
    for d in "123":
        for f in range(1, 21):
            got = read_file(f"{M}/stable/{d}/{f}")
            assert got == f"{d} {f}\n".encode(), got
def list_all():
    for d in "123":
        got = sorted(os.listdir(f"{M}/stable/{d}"), key=int)
        assert got == [str(f) for f in range(1, 21)], got
def find():
    count = sum(len(files) for _, _, files in os.walk(M + "/stable", onerror=lambda e: (_ for _ in ()).throw(e)))
    assert count == 60, count
def inside():
    # Its working directory is in the union all the time.
    assert read_file("7") == b"2 7\n" and read_file("../3/9") == b"3 9\n"
    assert os.getcwd() == M + "/stable/2", os.getcwd()
held = []
def holding():
    # An open file, and a map of it, since the beginning.
    if not held:
        fd = os.open(f"{M}/stable/1/5", os.O_RDONLY)
        held.extend([fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ), os.open(f"{M}/stable/3", os.O_RDONLY | os.O_DIRECTORY)])
    assert os.pread(held[0], 10, 0) == b"1 5\n" and held[1][:] == b"1 5\n"
    assert len(os.listdir(held[2])) == 20
    assert read_file(f"/proc/self/fd/{held[0]}") == b"1 5\n"
turn = itertools.count()
def write():
    n = next(turn)
    name = f"{M}/work/{os.getpid()}"
    write_file(f"{name}.new", f"{n}\n".encode() * 100)
    os.rename(f"{name}.new", name)
    with open(name, "ab") as file:
        file.write(b"end\n")
    assert read_file(name) == f"{n}\n".encode() * 100 + b"end\n"
    os.mkdir(f"{name}.d")
    os.rmdir(f"{name}.d")
    os.unlink(name)
VERSIONS = {b"a\n", b"b\n", b"c\n"}
def swapped():
    # In what is exchanged names come and go; what is there is whole.
    try:
        got = read_file(f"{M}/swap/who")
        assert got in VERSIONS, got
    except FileNotFoundError:
        pass
    except OSError as error:
        # Exchanged twice within one open(2): the kernel looks again once.
        if error.errno != errno.ESTALE:
            raise
    assert read_file(M + "/swap/changed") == b"changed\n" and read_file(M + "/swap/mine") == b"mine\n"
    assert not os.path.lexists(M + "/swap/gone")

def worker(act):
    count = 0
    if act is inside:
        os.chdir(M + "/stable/2")
    with open(T + "/errors", "a", buffering=1) as errors:
        while not os.path.exists(T + "/stop"):
            try:
                act()
                count += 1
            except BaseException as error:
                at = traceback.extract_tb(error.__traceback__)[-1].lineno
                errors.write(f"{act.__name__} line {at}: {type(error).__name__}: {error}\n")
                time.sleep(0.05)
    with open(T + "/errors", "a") as errors:
        if count < 20:
            errors.write(f"{act.__name__} came to {count} rounds only\n")
    os._exit(0)

for name in ("errors", "stop"):
    if os.path.exists(f"{T}/{name}"):
        os.unlink(f"{T}/{name}")
start = [LIST["a"] + "=RO", LIST["base"] + "=RO", f"{T}/up=RW"]
subprocess.run([COWFS, "-o", f"whiteout={form},allow_other,debug_file={T}/.test/log", ":".join(start), M], check=True)
write_file(M + "/swap/mine", b"mine\n")
write_file(M + "/swap/changed", b"changed\n")
os.unlink(M + "/swap/gone")
pids = []
for act in (stat_all, read_all, list_all, find, inside, holding, write, swapped):
    pid = os.fork()
    if pid == 0:
        worker(act)
    pids.append(pid)
time.sleep(0.3)
daemon = int(subprocess.run(["pgrep", "-xn", "cowfs"], capture_output=True, text=True).stdout)
files = lambda: len(os.listdir(f"/proc/{daemon}/fd"))
went = {}
kinds = {"add and remove": (["c", "a", "base"], ["a", "base"]), "reorder": (["b", "a", "base"], ["a", "b", "base"]),
         "swap": (["b", "base"], ["a", "base"]), "none but the base": (["base"], ["b", "base"])}
opened = None
for kind, lists in kinds.items():
    wrong, slowest = [], 0.0
    for n in range(rounds):
        names = lists[n % 2]
        absent = [name for name in ("who", "only-in-a", "only-in-b", "only-in-c", "nowhere")
                  if not os.path.lexists(f"{M}/swap/{name}")]
        before = time.monotonic()
        try:
            go(names)
            got, wanted = seen(), expected(names)
            if got != wanted:
                wrong.append(f"over {names}: {got}, not {wanted}")
            wrong += [f"over {names}: {name} is not seen" for name in absent
                      if name in wanted and not os.path.lexists(f"{M}/swap/{name}")]
        except OSError as error:
            wrong.append(f"over {names}: {error}")
        slowest = max(slowest, time.monotonic() - before)
        if n == 0:
            opened = files()
    equal(f"{form}: {kind}, {rounds} times: at once as over the new branches", wrong[:2], [])
    check(f"{form}: {kind}: none takes long", slowest < 5, f"{slowest:.1f} s")
open(T + "/stop", "w").close()
for pid in pids:
    os.waitpid(pid, 0)
with open(T + "/errors") as file:
    errors = file.read().splitlines()
equal(f"{form}: nobody outside was disturbed ({len(errors)} lines)", errors[:4], [])
time.sleep(0.1)
check(f"{form}: no descriptors are left behind", files() <= opened + 40, f"{opened} at first, {files()} now")
go(["b", "a", "base"])
P
for format in overlay oci unionfs unionfs-fuse; do
	rm -rf up && mkdir up
	: >"$LOG"
	PYTHON_LIMIT=200 python "$format" 30 <.test/load.py
	tree mnt >seen.live
	check "$format: unmounts" unmount "$M"
	no_daemon_left
	check "$format: mounts anew over what it was given last" union -o "allow_other" "b=RO:a:base=RO:up=RW" "$M"
	tree mnt >seen.anew
	same "$format: and shows the same" seen.live seen.anew
	check "$format: unmounts again" unmount "$M"
	equal "$format: a line in the log for each" "$(grep -c "branches changed by process [0-9]* of user 0: \".*base=RO\" is now \".*base=RO\"" "$LOG")" 121
done
for x in a b base; do exactly $x >$x.after; same "the lower $x has not changed by a byte" $x.before $x.after; done

# ---- what tenants have in it -------------------------------------------------------------------------------------------

rm -rf up && mkdir up
check "mounts" union -o "allow_other,debug_file=$LOG" a=RO:base=RO:up=RW "$M"
mkdir made && echo made >made/it
mount -t tmpfs inside mnt/proc && echo mounted >mnt/proc/x
mount --bind made mnt/swap/both
exec 7<mnt/swap/only-in-a
exec 6<mnt/swap/who
mark
mkdir up/in
check "an exchange" to "$T/b:$T/base:$T/up=RW"
equal "a tenant's mounts stay, also on a directory that is another one now" "$(cat mnt/proc/x mnt/swap/both/it)" $'mounted\nmade'
equal "open files of the branch that is gone are read on" "$(cat <&7; cat <&6)" $'a\na'
exec 6<&- 7<&-
equal "the log says who, what it was, and what it is" "$(said | sed -E 's/^[A-Z]+ //; s/process [0-9]+/process N/')" \
	"branches changed by process N of user 0: \"a=RO:base=RO\" is now \"$T/b=RO:$T/base=RO\""
umount mnt/proc mnt/swap/both
equal "below them is the new branch" "$(ls mnt/swap/both)" b
(cd mnt/swap/only-b && exec sleep 100) &
CWD=$!
sleep 0.2
check "an exchange under a working directory that goes" to "$T/a:$T/base"
refuse "that directory is gone" 'no such file' ls mnt/swap/only-b
kill $CWD
wait $CWD 2>/dev/null

check "a lower on a filesystem of its own" loop_fs ext4 16M other
DEV=$(basename "$(findmnt -no SOURCE "$T/other")")
mkdir other/swap && echo other >other/swap/who && echo long >other/swap/long && cp "$(command -v busybox)" other/swap/busybox
check "an exchange: one is added" to "$T/other:$T/base"
equal "it is seen" "$(cat mnt/swap/who)" other
echo copied >>mnt/swap/who
exec 7<mnt/swap/long
mnt/swap/busybox sleep 100 &
PROGRAM=$!
cat >.test/mapped.py <<'P'
with open("mnt/swap/busybox", "rb") as file:
    whole = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
open("mapped", "w").close()
while not os.path.exists("gone"):
    time.sleep(0.02)
with open("/proc/sys/vm/drop_caches", "w") as file:
    file.write("1\n")
equal("a map of a file of the branch that is gone", hashlib.sha256(whole[:]).hexdigest(), hashlib.sha256(read_file("busybox")).hexdigest())
P
cp other/swap/busybox busybox
python <.test/mapped.py &
MAPPED=$!
for i in {1..100}; do [ -e mapped ] && break; sleep 0.05; done
check "it is taken away" to "$T/a:$T/base"
touch gone
wait $MAPPED
check "a program of it runs on" kill $PROGRAM
wait $PROGRAM 2>/dev/null
equal "what was copied up of it stays" "$(cat mnt/swap/who)" $'other\ncopied'
check "it can be unmounted" umount other
sleep 0.5
check "a file of it that is open keeps it" test -e "/sys/fs/ext4/$DEV"
exec 7<&-
for i in {1..60}; do [ -e "/sys/fs/ext4/$DEV" ] || break; sleep 0.05; done
check "closed, its filesystem is free" test ! -e "/sys/fs/ext4/$DEV"
rm mnt/swap/who
check "back" to "$T/a:$T/base"
check "whiteouts stay" test ! -e mnt/swap/who

# ---- the forms of the command ------------------------------------------------------------------------------------------

mount -o remount,nosuid,noexec "$M" 2>/dev/null
before=$(flags "$M")
check "flags: only branches are named" to "$T/b:$T/base"
equal "flags: they stay" "$(flags "$M")" "$before"
check "flags: mount(8), which names them all" timeout 20 mount -o "remount,branches=$T/a:$T/base:$T/up=RW" "$M"
equal "flags: they stay" "$(flags "$M") $(cat mnt/swap/only-in-a)" "$before a"
check "flags: mount(8), one is changed" timeout 20 mount -o "remount,ro,branches=$T/b:$T/base" "$M"
equal "flags: both are" "$(flags "$M" | cut -d, -f1) $(cat mnt/swap/only-in-b)" "ro b"
refuse "flags: refused branches change no flags" 'does not exist' timeout 20 mount -o "remount,rw,branches=$T/nowhere" "$M"
refuse "flags: nor those that the daemon refuses" 'inside the writable branch' \
	timeout 20 mount -o "remount,rw,branches=$T/up/in:$T/base" "$M"
equal "flags: read-only still" "$(flags "$M" | cut -d, -f1)" ro
check "flags: back" timeout 20 mount -o "remount,rw,suid,exec,branches=$T/a:$T/base" "$M"
check "by relative paths, through a symlink, with a colon in a name" sh -c "cp -a b b:c && ln -s mnt link && cd up && '$COWFS' x ../link -o 'remount,branches=../b\\:c:../base'"
equal "they are those" "$(cat mnt/swap/only-in-b)" b
echo "$T/a=RO:$T/up=RW $M fuse.cowfs cow,allow_other,chroot=$T 0 0" >.test/fstab
mount --bind .test/fstab /etc/fstab
check "below the chroot= of a line in /etc/fstab" timeout 20 mount -o remount,branches=/a:/base "$M"
umount /etc/fstab
equal "they are those" "$(cat mnt/swap/only-in-a)" a
mkdir -p marks && : >marks/.wh.swap && echo m >marks/m
check "without +wh a .wh. file is none of its business" to "$T/marks:$T/a:$T/base"
equal "it shows what is below" "$(cat mnt/swap/only-in-a mnt/m)" $'a\nm'
check "with +wh it is a whiteout" to "$T/marks=RO+wh:$T/a:$T/base"
check "it hides what is below" test ! -e mnt/swap/only-in-a
check "only the upper is left" to "$T/up=RW"
check "no lower shows" test ! -e mnt/stable
check "and back" to "$T/a:$T/base"
equal "and back: all of it" "$(ls mnt/stable | wc -l)" 3
for i in {1..6}; do to "$T/b:$T/base" & to "$T/a:$T/base" & done 2>.test/many
wait
check "several at once: one of them counts" grep -qx '[ab]' <(cat mnt/swap/only-in-[ab])
check "the mountpoint in a lower" to "$T"
equal "it shows empty there, as the upper does" "$(ls -A mnt/mnt mnt/up | tr -d '\n')" "mnt/mnt:mnt/up:"
check "and back" to "$T/a:$T/base"

# ---- refusals: one line, status 1 or 2, and nothing changes ------------------------------------------------------------

mkdir plain
echo x >file
mark
# no STATUS NAME TEXT COMMAND...
no() {
	local status=$1 name=$2 text=$3 got
	shift 3
	refuse "$name" "$text" "$@"
	"$@" >/dev/null 2>said
	got=$?
	equal "$name: status, lines" "$got $(wc -l <said)" "$status 1"
}
no 1 "a missing branch" "branch \"$T/nowhere\" does not exist" to "$T/a:$T/nowhere"
no 1 "a file" "branch \"$T/file\" is not a directory" to "$T/file:$T/base"
no 1 "a branch twice" 'is given twice' to "$T/a:$T/a"
no 1 "another writable branch" "\"$T/b\" is not the writable branch of this union, which is \"up\"" to "$T/a:$T/b=RW"
no 1 "the upper as a lower" "is the writable branch of this union" to "$T/a:$T/up"
no 1 "a lower inside the upper" "\"$T/up/in\" is inside the writable branch \"(up|$T/up)\"" to "$T/up/in:$T/base"
mkdir bound && mount --bind up/in bound
no 1 "a lower inside the upper, by another mount" "inside the writable branch" to "$T/bound:$T/base"
umount bound
no 1 "not a union" 'nothing is mounted there' "$COWFS" -o "remount,branches=$T/a" plain
no 2 "no list" "option 'branches=' needs a value" to ""
no 2 "a bad mode" "not 'RX'" to "$T/a=RX"
no 2 "two writable ones" "two writable branches" to "$T/a=RW:$T/up=RW"
no 2 "without remount" "'branches' is for a mounted union" "$COWFS" -o "branches=$T/a" "$T/a" plain
no 1 "below another root" "branch \"/a\" \(below chroot=\"$T/b\"\) does not exist" to /a "chroot=$T/b"
D=$(daemons)
kill -STOP $D
no 1 "a daemon that is stopped" "the daemon of .* \(process $D\) does not answer" to "$T/b:$T/base"
kill -CONT $D
sleep 0.2
equal "after all that it is as it was" "$(cat mnt/swap/only-in-a; said)" a
equal "and the same daemon" "$(daemons)" "$D"
check "and it listens" to "$T/a:$T/base"

# ---- what a program says that is in the wrong --------------------------------------------------------------------------

mark
python "$D" <<'P'
# Takes the socket out, as only root can, and says what no command would.
import ctypes, random, socket
daemon = int(sys.argv[1])
process = os.pidfd_open(daemon)
libc = ctypes.CDLL(None, use_errno=True)
ends = []
for fd in os.listdir(f"/proc/{daemon}/fd"):
    if os.readlink(f"/proc/{daemon}/fd/{fd}").startswith("socket:"):
        end = socket.socket(fileno=libc.syscall(438, process, int(fd), 0))
        if end.type == socket.SOCK_SEQPACKET:
            ends.append(end)
        else:
            end.close()
def usable(end):
    # Nothing can be sent by the other one.
    try:
        end.send(b"hello")
        return True
    except BrokenPipeError:
        return False
mouths = [end for end in ends if usable(end)]
equal("one of two ends can be spoken by", (len(ends), len(mouths)), (2, 1))
mouth = mouths[0]
before = len(os.listdir(f"/proc/{daemon}/fd"))
for n in range(50):
    mouth.setblocking(True)
    mouth.send(random.randbytes(random.randrange(1, 2000)))
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(9)]
socket.send_fds(mouth, [b"cowfs: branches"], files)
socket.send_fds(mouth, [b"cowfs: branches"], files[:1])
socket.send_fds(mouth, [b"something else"], files[:1])

def talk():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(mouth, [b"cowfs: branches"], [theirs.fileno()])
    theirs.close()
    ours.settimeout(20)
    ours.recv(200000)
    return ours
def refusal(*messages):
    with talk() as ours:
        for message, fds in messages:
            socket.send_fds(ours, [message], fds)
        answer = ours.recv(200000)
        return "hung up" if not answer else answer[16:].decode() if answer[0] else None
number = lambda n: struct.pack("Q", n)
text = lambda t: number(len(t)) + t
lower = lambda label, below=b"": number(0) + text(label) + number(0) + (number(1) + text(below) if below else number(0))
go = (number(2), [])
where = lambda path: os.open(path, os.O_PATH)
T = os.environ["T"]
check("a file for a branch", "not a directory" in refusal((lower(b"x"), [where("/etc/passwd")])))
check("no descriptor", "makes no sense" in refusal((lower(b"x"), [])))
check("the upper for a branch", "is the writable branch" in refusal((lower(b"x"), [where(T + "/up")]), go))
check("a length that is not there", "makes no sense" in refusal((number(0) + number(1 << 40), [where(T)])))
check("a message of nothing known", "makes no sense" in refusal((number(7), [])))
check("too many descriptors", "hung up" in refusal((number(2), files)))
for n in range(30):
    check(f"noise {n}", True) if refusal((random.randbytes(random.randrange(1, 300)), [])) else check(f"noise {n}", False, "taken")
for n in range(20):
    # The asker dies in the middle.
    with talk() as ours:
        socket.send_fds(ours, [lower(b"half")], [where(T + "/b")])
time.sleep(0.5)
now = len(os.listdir(f"/proc/{daemon}/fd"))
check("no descriptors are left behind by all that", now <= before, f"{before} before, {now} now")
check("asked by name as any other", refusal((lower(b"a"), [where(T + "/a")]), (lower(b"base"), [where(T + "/base")]), go) is None)
P
equal "after all that it is as it was, but for the last" "$(cat mnt/swap/only-in-a; said | wc -l)" $'a\n1'
equal "and the same daemon" "$(daemons)" "$D"
check "hundreds of branches" bash -c "mkdir many && for n in {1..600}; do mkdir many/\$n && echo \$n >many/\$n/is-\$n; done"
check "hundreds of branches: exchanged" to "$(echo "$T"/many/* | tr ' ' :):$T/base"
equal "hundreds of branches: seen" "$(ls mnt | grep -c ^is-) $(cat mnt/is-600)" "600 600"
check "hundreds of branches: and back" to "$T/a:$T/base"

# A request that does not end: it is a lower's whose server is stopped.
mkdir net netup slow
head -c 3M /dev/urandom >slow/big && echo s >slow/small
check "a lower that hangs: mounts" union -o allow_other slow=RO:netup=RW "$T/net"
NET=$(daemons | grep -vx "$D")
check "a lower that hangs: it is exchanged while it does not" to "$T/net:$T/a:$T/base"
cat mnt/small >/dev/null
cd mnt/stable/1
kill -STOP $NET
cat "$M/big" >/dev/null &
READER=$!
sleep 0.3
mark
(while ! [ -e "$T/enough" ]; do /usr/bin/time -f %e -a -o "$T/waited" timeout 10 cat 1 ../2/2 ../3/3; sleep 0.1; done) >/dev/null 2>&1 &
OTHERS=$!
refuse "a lower that hangs: refused in time" 'busy' timeout 25 "$COWFS" -o "remount,branches=$T/b:$T/base" "$M"
touch "$T/enough"
wait $OTHERS
cd "$T"
equal "a lower that hangs: nothing is said to have changed" "$(said)" ""
check "a lower that hangs: nobody else waited for long" awk '$1 > 1 { bad = 1 } END { exit bad || NR < 20 }' waited
kill -CONT $NET
wait $READER
equal "a lower that hangs: nothing has changed" "$(cat mnt/swap/only-in-a mnt/small)" $'a\ns'
check "a lower that hangs: going on, it can be let go" to "$T/a:$T/base"
check "a lower that hangs: unmounts" unmount "$T/net"

# ---- who may not: think as a tenant ------------------------------------------------------------------------------------

mark
PLAIN='setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all --'
refuse "an ordinary user" 'no process that you may control' as_user "$COWFS" -o "remount,branches=$T/b" "$M"
refuse "root without capabilities" 'no process that you may control|may not be controlled' $PLAIN "$COWFS" -o "remount,branches=$T/b:$T/base" "$M"
refuse "root of a user namespace" 'no process that you may control|another user' unshare -Ur "$COWFS" -o "remount,branches=$T/b:$T/base" "$M"
refuse "root of a user namespace of its own mounts and pids" 'no process that you may control|another user|nothing is mounted' \
	unshare -Urmpf --mount-proc "$COWFS" -o "remount,branches=$T/b:$T/base" "$M"
python "$D" <<'P'
# The sockets of the daemon: no name that anybody could connect to, and no end in any other process.
daemon = sys.argv[1]
mine = set()
for fd in os.listdir(f"/proc/{daemon}/fd"):
    link = os.readlink(f"/proc/{daemon}/fd/{fd}")
    if link.startswith("socket:"):
        mine.add(link[8:-1])
        fails(f"socket {fd} cannot be opened", errno.ENXIO, os.open, f"/proc/{daemon}/fd/{fd}", os.O_RDWR)
lines = [line.split() for line in open("/proc/net/unix").read().splitlines()[1:]]
ours = [line for line in lines if line[6] in mine]
check("they are known to the kernel", len(ours) >= 2, ours)
equal("none has a name", [line for line in ours if len(line) > 7], [])
others = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        fds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        continue
    if pid != daemon and any(link[8:-1] in mine for link in fds):
        others.append(pid)
equal("no other process has an end", others, [])
P
equal "nothing was changed by them" "$(cat mnt/swap/only-in-a; said)" a

# A tenant's own mount, of the type of ours: root's descriptors must not go there.
cat >.test/fake.py <<'P'
import array, ctypes, os, socket, struct, sys, time
# fake STAGE: makes a mount, gives up what makes root root, and says that it is the daemon.
if sys.argv[1] == "mount":
    fuse = os.open("/dev/fuse", os.O_RDWR)
    os.set_inheritable(fuse, True)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"x", sys.argv[2].encode(), b"fuse.cowfs", 0, options.encode()):
        raise OSError(ctypes.get_errno())
    os.execvp("setpriv", ["setpriv", *sys.argv[4:], "--", "python3", sys.argv[0], "serve", sys.argv[2], sys.argv[3]])
ear, mouth = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
open(sys.argv[3] + ".ready", "w").close()
heard = open(sys.argv[3], "a", buffering=1)
ear.settimeout(10)
while True:
    try:
        message, fds, _, _ = socket.recv_fds(ear, 1000, 4)
    except TimeoutError:
        break
    heard.write(f"{message} {len(fds)}\n")
    for fd in fds:
        with socket.socket(fileno=fd) as talk:
            # Version, no device, no upper, workdir, mountpoint; no container, no mapping.
            talk.send(struct.pack("7Q", 1, 0, 0, 0, 0, 0, 0))
            talk.settimeout(2)
            try:
                message, got, _, _ = socket.recv_fds(talk, 10000, 4)
                heard.write(f"handed over: {[os.readlink(f'/proc/self/fd/{fd}') for fd in got]}\n")
            except OSError as error:
                heard.write(f"{error}\n")
P
mkdir fake
# fake NAME WANTED OPTION...: what the command says to such a one.
fake() {
	local name=$1 wanted=$2 pid
	shift 2
	rm -f .test/heard .test/heard.ready && touch .test/heard && chmod 666 .test/heard && chmod 777 .test
	/usr/bin/python3 .test/fake.py mount "$T/fake" "$T/.test/heard" "$@" 9>&- &
	pid=$!
	for i in {1..100}; do [ -e .test/heard.ready ] && break; sleep 0.05; done
	check "$name: it serves a mount" is_mounted "$T/fake"
	refuse "$name: refused" "$wanted" timeout 20 "$COWFS" -o "remount,branches=$T/a" "$T/fake"
	equal "$name: it was handed nothing" "$(grep -c 'handed over' .test/heard)" 0
	kill $pid
	wait $pid 2>/dev/null
	umount -l fake
}
fake "a daemon of another user" 'another user' --reuid=$TEST_UID --regid=$TEST_UID --clear-groups
fake "a daemon of root with less power" 'fewer capabilities' --bounding-set=-all --inh-caps=-all
fake "a daemon of root without one capability" 'fewer capabilities' --bounding-set=-sys_admin --inh-caps=-all
check "a union of a user" as_user sh -c 'mkdir /tmp/cowfs-live.$$ && cd /tmp/cowfs-live.$$ && mkdir l l2 u m && echo 2 >l2/f && "$COWFS" l=RO:u=RW m && pwd >"$T/.test/where"'
U=$(cat .test/where)
refuse "a union of a user: not for root, whose descriptors it would be" 'is of another user than you' "$COWFS" -o "remount,branches=$T/a" "$U/m"
check "a union of a user: for himself" as_user "$COWFS" -o "remount,branches=$U/l2" "$U/m"
equal "a union of a user: it is changed" "$(as_user cat "$U/m/f")" 2
umount "$U/m"
rm -rf "$U"
check "in a user namespace" unshare -Urm sh -c "mkdir -p ul && '$COWFS' ul=RO:plain=RW fake && '$COWFS' -o 'remount,branches=$T/b' fake && grep -qx b fake/swap/only-in-b && umount fake"

# ---- options that the daemon was mounted with --------------------------------------------------------------------------

check "unmounts" unmount "$M"
no_daemon_left
mkdir -p work
rm -rf up && mkdir up
check "a container's: mounts" union -o "allow_other,lowerdir=$T/a:$T/base,upperdir=$T/up,workdir=$T/work" "$M"
check "a container's: exchanged" to "$T/marks:$T/a:$T/base"
equal "a container's: .wh. files count in each layer" "$(ls mnt/swap 2>&1 | grep -c 'No such')" 1
no 1 "a container's: the workdir itself" 'is branch .*work' to "$T/work:$T/a"
setfattr -n user.containers.override_stat -v 0:0:0755 c
no 1 "a container's: a layer whose owners stand in an attribute" 'keeps owners and modes in the attribute' to "$T/c:$T/a"
setfattr -x user.containers.override_stat c
check "a container's: unmounts" unmount "$M"
no_daemon_left
for option in volatile direct_io coherent passthrough=off threads=1 ro auto_unmount; do
	rm -rf up && mkdir up
	check "$option: mounts" union -o "allow_other,$option" a=RO:base=RO:up=RW "$M"
	cat mnt/swap/who mnt/stable/*/* >/dev/null
	check "$option: exchanged" to "$T/b:$T/base"
	equal "$option: seen" "$(cat mnt/swap/only-in-b mnt/swap/who)" $'b\nb'
	check "$option: and back" to "$T/a:$T/base:$T/up=RW"
	equal "$option: seen" "$(cat mnt/swap/only-in-a mnt/swap/who)" $'a\na'
	check "$option: unmounts" unmount "$M"
	no_daemon_left
done
python <<'P'
# Mounted by another program, which hands over /dev/fuse: the daemon does not know which mount it serves.
import ctypes, subprocess
T, COWFS = os.environ["T"], os.environ["COWFS"]
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions".encode()
check("handed over: mounts", ctypes.CDLL(None).mount(b"x", f"{T}/mnt".encode(), b"fuse.cowfs", 0, options) == 0)
subprocess.run([COWFS, "-o", "allow_other", f"{T}/a=RO:{T}/base=RO", f"/dev/fd/{fuse}"], pass_fds=[fuse], check=True)
os.close(fuse)
done = subprocess.run([COWFS, "-o", f"remount,branches={T}/b:{T}/base", f"{T}/mnt"], capture_output=True, text=True)
equal("handed over: exchanged", (done.returncode, done.stderr), (0, ""))
equal("handed over: seen", read_file(f"{T}/mnt/swap/only-in-b"), b"b\n")
P
check "handed over: unmounts" unmount "$M"
no_daemon_left
check "no upper: mounts" union -o allow_other a=RO:base=RO "$M"
check "no upper: exchanged" to "$T/b:$T/base"
equal "no upper: seen" "$(cat mnt/swap/only-in-b)" b
no 1 "no upper: it gets none" "this union has none" to "$T/a:$T/up=RW"
equal "no upper: as it was" "$(cat mnt/swap/only-in-b)" b
check "no upper: unmounts" unmount "$M"

check "watch: a lower on a filesystem of its own" loop_fs ext4 16M other
DEV=$(basename "$(findmnt -no SOURCE "$T/other")")
mkdir other/swap && echo other >other/swap/who
check "watch: mounts" union -o "allow_other,watch,debug_file=$LOG" a=RO:base=RO:up=RW "$M"
D=$(daemons)
marks() { cat /proc/$D/fdinfo/* 2>/dev/null | grep -c '^fanotify sdev:'; }
equal "watch: one filesystem is heard of" "$(marks)" 1
check "watch: exchanged" to "$T/other:$T/base"
equal "watch: two filesystems are heard of" "$(marks)" 2
equal "watch: seen" "$(cat mnt/swap/who; ls mnt/swap/late 2>&1 | grep -c 'No such')" $'other\n1'
echo changed >other/swap/who && echo late >other/swap/late
sleep 0.3
equal "watch: a change of the new branch is seen" "$(cat mnt/swap/who mnt/swap/late)" $'changed\nlate'
check "watch: and it is let go" to "$T/a:$T/base"
equal "watch: one is heard of again" "$(marks)" 1
no 1 "watch: what is refused" 'does not exist' to "$T/other:$T/nowhere"
equal "watch: one is heard of still" "$(marks)" 1
check "watch: it can be unmounted" umount other
for i in {1..60}; do [ -e "/sys/fs/ext4/$DEV" ] || break; sleep 0.05; done
check "watch: its filesystem is free" test ! -e "/sys/fs/ext4/$DEV"
equal "watch: nothing is said of changes that are not heard" "$(grep -c 'not heard' "$LOG")" 0
echo late >a/swap/late-a
sleep 0.3
equal "watch: changes of the others are seen" "$(cat mnt/swap/late-a)" late
rm a/swap/late-a
check "watch: unmounts" unmount "$M"
no_daemon_left

# A lower on FUSE that is mounted anew.
rm -rf netup && mkdir netup
check "a lower on FUSE" union -o allow_other b=RO:netup=RW "$T/net"
NET=$(daemons)
check "a lower on FUSE: mounts without" union -o "allow_other,debug_file=$LOG" a=RO:base=RO:up=RW "$M"
mark
check "a lower on FUSE: exchanged" to "$T/net:$T/base"
equal "a lower on FUSE: seen" "$(cat mnt/swap/only-in-b)" b
kill -KILL $NET
sleep 0.2
cat mnt/swap/who mnt/swap/both/b >/dev/null 2>&1
umount -l net
check "a lower on FUSE: mounted anew" union -o allow_other b=RO:netup=RW "$T/net"
for i in {1..60}; do cat mnt/swap/both/b >/dev/null 2>&1; tail -n +"$((MARK + 1))" "$LOG" | grep -q 'mounted anew, and is served again' && break; sleep 0.1; done
equal "a lower on FUSE: it is served again" "$(cat mnt/swap/who)" b
check "a lower on FUSE: let go" to "$T/a:$T/base"
sleep 1.5
check "a lower on FUSE: unmounts" unmount "$T/net"
check "a lower on FUSE: the union unmounts" unmount "$M"
no_daemon_left

# ---- a vassal: mount and pid namespace of its own, its union for its root; asked from the machine ----------------------

mkdir -p ns/{one,two}/{bin,proc,.old,etc} ns/cow ufs
cp "$(command -v busybox)" ns/one/bin/busybox && cp ns/one/bin/busybox ns/two/bin/ || fail "busybox is missing"
echo one >ns/one/etc/release && echo two >ns/two/etc/release
cat >.test/vassal <<'V'
"$COWFS" -o cow,chroot=$T/ns,default_permissions,allow_other,debug_file=$T/.test/vassal.log /one=RO:/cow=RW $T/ufs || exit 1
cd $T/ufs && pivot_root . .old && cd / && exec /bin/busybox sh -c '
	B=/bin/busybox
	$B umount -l /.old
	$B mount -t tmpfs fake /proc && $B mkdir -p /proc/self/fd /proc/1 && echo "0 0 0:1 / / rw - fuse.cowfs x rw" >/proc/self/mountinfo
	echo up >/up
	while $B sleep 0.1; do $B cat /etc/release >/seen; done'
V
unshare -mpf --kill-child=KILL bash .test/vassal 9>&- 2>.test/vassal.said &
OUTER=$!
for i in {1..100}; do [ "$(cat ns/cow/seen 2>/dev/null)" = one ] && break; sleep 0.1; done
equal "a vassal lives in its union" "$(cat ns/cow/seen)" one
INIT=$(pgrep -P $OUTER)
check "from the machine, by -N, with a false /proc in there" timeout 20 /usr/sbin/mount.cowfs x / -N /proc/$INIT/ns/mnt -o "remount,chroot=$T/ns,branches=/two:/cow=RW"
for i in {1..50}; do [ "$(cat ns/cow/seen)" = two ] && break; sleep 0.1; done
equal "it sees the new root" "$(cat ns/cow/seen)" two
check "through mount(8)" timeout 20 mount -N /proc/$INIT/ns/mnt -t fuse.cowfs -o "remount,chroot=$T/ns,branches=/one:/cow=RW" x /
for i in {1..50}; do [ "$(cat ns/cow/seen)" = one ] && break; sleep 0.1; done
equal "and back" "$(cat ns/cow/seen)" one
refuse "another upper than its own" 'is not the writable branch' timeout 20 /usr/sbin/mount.cowfs x / -N /proc/$INIT/ns/mnt -o "remount,branches=$T/ns/one:$T/up=RW"
equal "the log has both, by a process that it does not see" "$(grep -c 'branches changed by process 0 of user 0' .test/vassal.log)" 2
kill -KILL $INIT
wait $OUTER 2>/dev/null
check "no daemon left" no_daemon_left
finish
