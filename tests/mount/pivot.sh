#!/bin/bash
# The union as the root: private mount and pid namespace, a root tree with neither /proc nor /dev, pivot_root, the old root
# detached; inside, root and a user do all there is to do, and install a package. With chroot= and without, with one thread
# and several. Nothing hangs; kill -9 of the daemon frees everybody.
# timeout: 420
. "$(dirname "$0")/../lib.sh"

# ---- the root tree ------------------------------------------------------------------------------------------------------

R=$T/ns/precise
mkdir -p "$R"/{bin,sbin,usr/bin,usr/lib,etc,tmp,root,home,test,var/lib/dpkg/{info,updates,triggers}} ns/cow ufs
chmod 1777 "$R/tmp"
: >"$R/var/lib/dpkg/status"
# put PROGRAM...: copies programs and the libraries that they and what they load need.
put() {
	local file library
	for file; do
		case $file in
		*.so) ;;
		*) mkdir -p "$R$(dirname "$file")" && cp -L "$file" "$R$file" ;;
		esac
		for library in $(ldd "$file" 2>/dev/null | grep -oE '/[^ ]+\.so[^ ]*'); do
			[ -e "$R$library" ] || { mkdir -p "$R$(dirname "$library")" && cp -L "$library" "$R$library"; }
		done
	done
}
mkdir -p "$R/usr/lib/python3.11"
PYTHON=$(/usr/bin/python3 -c 'import sys; print(f"python{sys.version_info.major}.{sys.version_info.minor}")')
rmdir "$R/usr/lib/python3.11"
mkdir -p "$R/usr/lib/$PYTHON"
(cd "/usr/lib/$PYTHON" && tar -c --exclude=test --exclude=__pycache__ --exclude=config-* --exclude=idlelib .) | tar -x -C "$R/usr/lib/$PYTHON"
put "/usr/bin/$PYTHON" /usr/lib/"$PYTHON"/lib-dynload/*.so /usr/bin/{setfattr,getfattr,dpkg,dpkg-deb,dpkg-query,dpkg-split,tar} /bin/{true,sleep} /sbin/ldconfig
ln -s "$PYTHON" "$R/usr/bin/python3"
cp "$(command -v busybox)" "$R/bin/busybox" || fail "busybox is missing: apt-get install busybox-static"
for applet in sh cat ls mkdir mv rm rmdir cp ln chmod chown touch grep sed find stat id sort wc head tail umount diff start-stop-daemon chroot; do
	[ -e "$R/bin/$applet" ] || ln -s busybox "$R/bin/$applet"
done
printf 'root:x:0:0::/root:/bin/sh\nuser:x:%s:%s::/home/user:/bin/sh\n' $TEST_UID $TEST_UID >"$R/etc/passwd"
printf 'root:x:0:\nuser:x:%s:\n' $TEST_UID >"$R/etc/group"
cp "$TEST_DIR"/{lib,semantics}.py "$R/test/"
echo shared >"$R/etc/shared"
mkdir "$R/cases" "$R/home/user" && chown $TEST_UID:$TEST_UID "$R/home/user"
/usr/bin/python3 "$TEST_DIR/semantics.py" list | grep -vxE 'many|crowd|tmpfile|handles' >cases
/usr/bin/python3 "$TEST_DIR/semantics.py" prepare "$R/cases" $(cat cases) || fail "the cases cannot be prepared"
cp "$TEST_DIR/semantics.py" "$T/.test/"
make_user
as_user /usr/bin/python3 "$T/.test/semantics.py" prepare "$R/home/user" $(cat cases) || fail "the user's cases cannot be prepared"

# A package with a script that runs.
mkdir -p package/{DEBIAN,usr/bin,etc/parcel}
printf 'Package: parcel\nVersion: 1.0\nArchitecture: all\nMaintainer: test <test@example.org>\nDescription: a parcel\n' >package/DEBIAN/control
printf '#!/bin/sh\necho configured >/etc/parcel/state\nln -sf parcel /usr/bin/parcel2\n' >package/DEBIAN/postinst
printf '#!/bin/sh\necho parcel runs\n' >package/usr/bin/parcel
echo default >package/etc/parcel/conf
echo /etc/parcel/conf >package/DEBIAN/conffiles
echo replaced >package/etc/shared.new
chmod 755 package/DEBIAN/postinst package/usr/bin/parcel
dpkg-deb --root-owner-group -b package "$R/root/parcel.deb" >/dev/null || fail "the package cannot be built"

cat >"$R/test/script" <<'EOS'
#!/bin/sh
# As whoever runs it, in the current directory.
set -e
mkdir work && cd work
echo one >a && echo two >>a && cp a b && mv b c && ln c d && ln -s c e
[ "$(cat e)" = "$(printf 'one\ntwo')" ]
chmod 640 c && [ "$(stat -c %a d)" = 640 ]
for i in 1 2 3 4 5 6 7 8 9; do echo $i >f$i; done
[ "$(ls f* | wc -l)" = 9 ]
rm f*
find . | sort | grep -q './c'
printf '#!/bin/sh\necho deeper\n' >run && chmod 755 run && [ "$(./run)" = deeper ]
cd .. && rm -r work
echo script done
EOS
cat >"$R/test/session" <<'EOS'
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/test
cd /
umount -l /old || echo "the old root stays"
rmdir /old
[ -e /proc ] || [ -e /dev ] && echo "there is a /proc or a /dev"
python3 /test/semantics.py run /cases $CASES || echo "root's cases did not end: $?"
cd /root && sh /test/script || echo "root's script failed"
python3 -c '
import os, sys
os.setgroups([]); os.setresgid(UID, UID, UID); os.setresuid(UID, UID, UID)
os.chdir("/home/user")
sys.exit(os.spawnvp(os.P_WAIT, "python3", ["python3", "/test/semantics.py", "run", "/home/user", *os.environ["CASES"].split()]) or
         os.spawnvp(os.P_WAIT, "sh", ["sh", "/test/script"]))' || echo "the user's part failed: $?"
dpkg --force-not-root -i /root/parcel.deb >/tmp/dpkg.log 2>&1 || { echo "dpkg failed"; cat /tmp/dpkg.log; }
[ "$(parcel2)" = "parcel runs" ] || echo "the package does not run"
[ "$(cat /etc/parcel/state)" = configured ] || echo "the package is not configured"
dpkg -r parcel >/tmp/dpkg.log 2>&1 || { echo "dpkg -r failed"; cat /tmp/dpkg.log; }
[ -e /usr/bin/parcel ] && echo "the package stays"
setfattr -n user.x -v y /etc/shared && getfattr --absolute-names --only-values -n user.x /etc/shared | grep -q y || echo "setfattr failed"
rm -r /usr/lib/python3*/email || echo "rm of a lower tree failed"
echo session ended
EOS
sed -i "s/\bUID\b/$TEST_UID/g" "$R/test/session"
cat >"$R/test/victims" <<'EOS'
export PATH=/usr/bin:/bin
umount -l /old
exec python3 -c '
import os, subprocess, sys, time

def endless(deed):
    """A process that goes on until the union fails it."""
    if os.fork() == 0:
        try:
            while True:
                deed()
        except OSError:
            os._exit(0)

def write(n=[0]):
    n[0] += 1
    with open(f"/tmp/{n[0] % 50}", "w") as file:
        file.write("x" * 5000)

def read():
    with open("/etc/passwd") as file:
        file.read()

endless(write)
endless(read)
endless(lambda: os.listdir("/usr/lib"))
endless(lambda: subprocess.run(["/bin/true"]).check_returncode())
held = open("/tmp/held", "w")
print("ready", flush=True)
count = 0
while True:
    try:
        # The kernel may serve an open file without its daemon; a name it must ask for.
        held.write("x" * 100000)
        held.seek(0)
        open(f"/tmp/fresh{count}", "w").close()
        os.unlink(f"/tmp/fresh{count}")
        count += 1
    except OSError:
        break
    time.sleep(0.01)
for n in range(4):
    os.wait()
print("freed", flush=True)
os._exit(0)'
EOS
tree "$R" exact >lower.before

# What pid 1 of a customer does: mount, go in, leave the old root.
cat >customer <<'EOS'
$MOUNT || { echo "cowfs gave status $?"; exit 1; }
cd "$T/ufs" && mkdir old && pivot_root . old || { echo "no pivot"; exit 1; }
exec /bin/busybox env -i CASES="$CASES" /bin/busybox chroot . /bin/sh "/test/$SESSION"
EOS
# customer SESSION LIMIT CONTEXT MOUNT...
customer() {
	local session=$1 limit=$2
	shift 2
	SESSION=$session MOUNT="$*" CASES=$(tr '\n' ' ' <cases) \
		timeout -k 2 "$limit" unshare -mpf --mount-proc --propagation private --kill-child=KILL bash customer 2>&1 </dev/null
}

number=0
for threads in 1 3; do
	for way in with without; do
		number=$((number + 1))
		upper=ns/cow/u$number
		mkdir "$upper"
		if [ $way = with ]; then
			mount="$COWFS -ocow,chroot=$T/ns,default_permissions,allow_other,suid,dev,threads=$threads /precise=RO:/cow/u$number=RW $T/ufs"
		else
			mount="$COWFS -o cow,allow_other,suid,dev,threads=$threads $R=RO:$T/$upper=RW $T/ufs"
		fi
		name="$way chroot=, threads=$threads"
		# Every check of the session counts; what it says beside them is a failure.
		customer session 200 $mount | grep -v '^#' >session.out
		status=${PIPESTATUS[0]}
		grep -E '^FAIL' session.out
		equal "$name: the session ended" "$status $(tail -n 1 session.out)" "0 session ended"
		equal "$name: it has nothing to complain of" "$(grep -vE '^(ok|FAIL) ' session.out)" "$(printf 'script done\nscript done\nsession ended\n')"
		check "$name: the daemon ends with its namespace" no_daemon_left
		equal "$name: the upper has the changes" "$(getfattr --only-values -n user.x "$upper/etc/shared" 2>&1)" y

		mkdir -p "$upper-k"
		rm -f victims.out
		customer victims 150 ${mount//u$number=RW/u$number-k=RW} >victims.out &
		customer=$!
		began=$SECONDS
		for i in {1..600}; do
			grep -qs ready victims.out && break
			sleep 0.1
		done
		equal "$name: the victims run, after $((SECONDS - began)) s" "$(cat victims.out)" ready
		sleep 0.5
		began=$SECONDS
		kill -KILL $(daemons)
		wait $customer
		# With the errors of its calls, or by SIGBUS, when its own program's pages are gone.
		equal "$name: kill -9 of the daemon frees everybody, with an error" "$(grep -cx "$?" <<<$'0\n135') $((SECONDS - began < 60))" "1 1"
		check "$name: nobody is left" no_daemon_left
		check "$name: a new mount just works" union -o cow "$R=RO:$upper-k=RW" "$T/ufs"
		equal "$name: and shows both branches" "$(cat ufs/etc/shared; ls -d ufs/tmp/held)" "$(printf 'shared\nufs/tmp/held\n')"
		check "$name: unmounts" unmount "$T/ufs"
	done
done
tree "$R" exact >lower.after
same "the shared root is untouched" lower.before lower.after
finish
