#!/bin/bash
# Changes of the lower branches behind a mounted union: when they are seen, with `watch` and without.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=350

mkdir -p low/{a,b}/{merged,plain} up/merged ufs
cat >"$T/.test/behind.py" <<'EOF'
"""Each kind of change, made in a lower branch after the union has shown what was there before."""
import itertools
import shutil

limit = float(sys.argv[1])


def soon(what, condition):
    """Holds within the limit."""
    end = time.time() + limit
    while time.time() < end:
        try:
            if condition():
                return check(what, True)
        except OSError:
            pass
        time.sleep(0.02)
    check(what, False)


def prepare(low):
    for directory in ("merged", "plain"):
        write_file(f"{low}/{directory}/text", b"before\n")
        write_file(f"{low}/{directory}/binary", b"\0BIN" + b"b" * 200_000)
        write_file(f"{low}/{directory}/gone", b"x")
        write_file(f"{low}/{directory}/old name", b"moved")
        os.makedirs(f"{low}/{directory}/dir/below", exist_ok=True)


def look(at):
    """All that the kernel may keep: names, attributes, absence, data, listings."""
    os.stat(f"{at}/text"), os.stat(f"{at}/binary"), os.stat(f"{at}/gone"), os.stat(f"{at}/old name")
    for absent in ("new", "new name", "dir/below/new"):
        try:
            os.stat(f"{at}/{absent}")
        except FileNotFoundError:
            pass
    read_file(f"{at}/text"), read_file(f"{at}/binary"), os.listdir(at), os.listdir(f"{at}/dir/below")


prepare("low/a")
for low, directory in itertools.product(("low/a", "low/b"), ("merged", "plain")):
    if (low, directory) == ("low/b", "merged"):
        # One lower behind another, and behind the upper: what hides it goes, too.
        prepare("low/b")
        shutil.rmtree("low/a/plain")
        shutil.rmtree("low/a/merged")
        os.makedirs("low/a/merged")
    at, real, case = f"ufs/{directory}", f"{low}/{directory}", f"{low}/{directory}: "
    soon(case + "what was there before is shown", lambda: read_file(f"{at}/text") == b"before\n")
    soon(case + "the whole of it", lambda: "old name" in os.listdir(at) and os.stat(f"{at}/dir/below"))
    look(at)
    held = os.open(f"{at}/text", os.O_RDONLY)
    append_file(f"{real}/text", b"after\n")
    write_file(f"{real}/binary", b"\0BIN" + b"c" * 100)
    write_file(f"{real}/new", b"n")
    os.unlink(f"{real}/gone")
    os.rename(f"{real}/old name", f"{real}/new name")
    os.chmod(f"{real}/dir", 0o700)
    write_file(f"{real}/dir/below/new", b"deep")
    soon(case + "new data", lambda: read_file(f"{at}/text") == b"before\nafter\n")
    soon(case + "new data by an old descriptor", lambda: os.fstat(held).st_size == 13 and os.pread(held, 99, 0).endswith(b"after\n"))
    soon(case + "a file written anew", lambda: len(read_file(f"{at}/binary")) == 104)
    soon(case + "a new name", lambda: read_file(f"{at}/new") == b"n")
    soon(case + "a name that is gone", lambda: not os.path.lexists(f"{at}/gone"))
    soon(case + "a rename", lambda: read_file(f"{at}/new name") == b"moved" and not os.path.lexists(f"{at}/old name"))
    soon(case + "a mode", lambda: os.stat(f"{at}/dir").st_mode & 0o777 == 0o700)
    soon(case + "deep down", lambda: read_file(f"{at}/dir/below/new") == b"deep")
    names = {"text", "binary", "new", "new name", "dir"}
    soon(case + "the listing", lambda: set(os.listdir(at)) == names)
    soon(case + "the listing further down", lambda: os.listdir(f"{at}/dir/below") == ["new"])
    os.close(held)
EOF

sees() {
	rm -rf low up && mkdir -p low/{a,b}/{merged,plain} up/merged
	check "mounts with ${1:-no option}" union -o "cow,allow_other${1:+,$1}" up=RW:low/a=RO:low/b=RO "$T/ufs"
	python "$2" <"$T/.test/behind.py"
	check "unmounts" unmount "$T/ufs"
	no_daemon_left
}
# Soon, where the kernel was told to trust for a day; without, when its trust of ten seconds has run out.
sees watch 8
sees "" 40

# The tenant's own work under a watch goes on undisturbed.
check "mounts" union -o cow,allow_other,watch up=RW:low/a=RO:low/b=RO "$T/ufs"
mkdir "$T/ufs/work"
for n in $(seq 300); do echo "$n" >"$T/ufs/work/$n"; done
equal "300 new files under a watch" "$(cat "$T"/ufs/work/* | sort -n | md5sum)" "$(seq 300 | md5sum)"
check "and deleted" rm -r "$T/ufs/work"
check "unmounts" unmount "$T/ufs"
no_daemon_left

# What a tenant has mounted on a lower directory stays there when that directory changes, or comes and goes in another branch;
# but not when it is gone.
rm -rf low up && mkdir -p low/a/{proc,going}/below low/b up
check "mounts" union -o cow,allow_other,watch up=RW:low/a=RO:low/b=RO "$T/ufs"
for dir in proc/below proc going; do mount -t tmpfs tenant "$T/ufs/$dir"; done
soon() { for _ in {1..60}; do "$@" && return; sleep 0.05; done; return 1; }
cd "$T/ufs/proc" || fail "no working directory"
chmod 700 "$T/low/a/proc"
mkdir -p "$T"/low/b/proc/{below,new} && chmod 700 "$T/low/b/proc/below"
[ ! -e "$T/ufs/heard" ] && mkdir "$T/low/b/heard"
check "what came last has been heard of" soon [ -e "$T/ufs/heard" ]
rmdir "$T/low/b/proc/below" && rmdir "$T/low/b/heard"
check "and that it has gone" soon eval '[ ! -e "$T/ufs/heard" ]'
check "a tenant's mount stays on a directory that changes behind" is_mounted "$T/ufs/proc"
equal "and a working directory in it" "$(stat -f -c %T .)" tmpfs
cd "$T" || fail "no working directory"
check "and can be taken off" umount "$T/ufs/proc"
check "and one below" is_mounted "$T/ufs/proc/below"
equal "the directory itself shows its changes" "$(stat -c %a "$T/ufs/proc") $(ls -m "$T/ufs/proc")" "700 below, new"
rm -r "$T/low/a/going"
check "one on a directory that goes goes with it" soon eval '[ ! -e "$T/ufs/going" ] && ! is_mounted "$T/ufs/going"'
umount "$T/ufs/proc/below"
check "unmounts" unmount "$T/ufs"
no_daemon_left

# Nor from one of a lower that is an overlay itself, and copies its directories up when they are changed: they are as old as the
# copies then.
rm -rf low up && mkdir -p first/{dir,here} second copies low up
check "an overlay" mount -t overlay ov -o lowerdir=first,upperdir=second,workdir=copies low
check "mounts on it" union -o cow,allow_other,entry_timeout=0,attr_timeout=0 up=RW:low=RO "$T/ufs"
mount -t tmpfs tenant "$T/ufs/dir"
cd "$T/ufs/here" || fail "no working directory"
touch "$T"/low/{dir,here}/new
check "they are copied up there" [ -e "$T/second/dir/new" ] && check "both" [ -e "$T/second/here/new" ]
equal "a tenant's mount stays on a directory of it" "$(stat -f -c %T "$T/ufs/dir")" tmpfs
equal "the directory shows its changes" "$(ls "$T/ufs/here")" new
equal "to who works there, too, and takes others" "$(ls; touch made; ls -m)" $'new\nmade, new'
cd "$T" || fail "no working directory"
umount "$T/ufs/dir"
check "unmounts" unmount "$T/ufs"
no_daemon_left
umount low

# Who may not be told of changes gets no mount that would not show them.
make_user
mkdir -p home/{low,up,mnt} && chown -R "$TEST_UID:$TEST_UID" home
refuse "an ordinary user's watch" "option 'watch'" as_user timeout 20 "$COWFS" -o watch "$T/home/low=RO:$T/home/up=RW" "$T/home/mnt"
check "and nothing is mounted" eval "! is_mounted '$T/home/mnt'"
finish
