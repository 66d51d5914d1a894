#!/bin/bash
# A whole Debian as the lower: package manager, git, compiler, databases, cp, tar and rsync work in a chroot on the union.
# timeout: 500
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"

# digest DIR: one line for each object: contents, metadata (change time and inode number too) and attributes.
digest() {
	(cd "$1" && find . -printf '%y %m %U:%G %s %n %i %T@ %C@ %l %p\n' | sort -k 10
		find . -type f -print0 | sort -z | xargs -0 sha256sum
		getfattr -hR -d -m - . 2>/dev/null)
}

# inside NAME COMMAND: a shell command in the chroot succeeds.
inside() { check "$1" timeout -k 5 "${LIMIT:-90}" chroot mnt env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive TERM=dumb /bin/bash -ec "$2"; }

# The copy's tree below $2 must be that below $1: names, types, modes, owners, sizes, links, times (directories' too), contents.
SAME_TREES='same_trees() {
	local tree
	for tree in "$1" "$2"; do
		(cd "$tree" && find . -type d -printf "%y %m %U:%G %T@ %p\n" -o -printf "%y %m %U:%G %s %n %T@ %l %p\n" | sort -k 5) >/tmp/list.$$
		[ "$tree" = "$1" ] && mv /tmp/list.$$ /tmp/list-first.$$
	done
	diff /tmp/list-first.$$ /tmp/list.$$ | head -n 10
	cmp -s /tmp/list-first.$$ /tmp/list.$$ && diff -r --no-dereference "$1" "$2" | head -n 10 && [ "${PIPESTATUS[0]}" = 0 ]
};'

enter() {
	check "cowfs mounts the Debian" union -o cow,allow_other,default_permissions,dev,suid "$T/debian=RO:$T/upper=RW" "$T/mnt" &&
		mount -t proc proc mnt/proc && mount --rbind /dev mnt/dev && mount --bind "$CACHE/archives" mnt/var/cache/apt/archives
}
leave_chroot() {
	umount -l mnt/proc mnt/dev mnt/var/cache/apt/archives
	check "cowfs unmounts" unmount mnt
	check "no daemon left" no_daemon_left
}

need getfattr=attr sqlite3=sqlite3
debian_root
mkdir -p "$CACHE/archives/partial" upper mnt
cp -a "$CACHE/bookworm" debian
cp /etc/resolv.conf debian/etc/resolv.conf
printf '#!/bin/sh\nexit 101\n' >debian/usr/sbin/policy-rc.d && chmod 755 debian/usr/sbin/policy-rc.d
# A database that is in the lower, with a journal mode that needs shared memory.
sqlite3 debian/var/lib/lower.db "pragma journal_mode=wal; create table t(writer, n); insert into t values('lower', 0);" >/dev/null
rm -f debian/var/lib/lower.db-*
# Logs of the lower that grow while they are followed: one small, one that is large enough to be passed through.
echo "first line" >debian/var/log/small.log
yes "a line that was there" | head -c 300000 >debian/var/log/large.log
ln debian/etc/hostname debian/etc/hostname-too
setcap cap_net_raw+ep debian/bin/ping 2>/dev/null || setfattr -n user.note -v kept debian/usr/bin/perl
digest debian >lower.before

enter || finish

# ---- the package manager ----
LIMIT=150
inside "apt-get update" 'apt-get -q update'
inside "apt-get install" 'apt-get -q -y install --no-install-recommends gcc libc6-dev make git sqlite3 rsync python3 attr acl'
LIMIT=60
inside "apt-get download, dpkg -i" 'cd /tmp && apt-get -q download hello && dpkg -i hello_*.deb && hello | grep -q Hello'
inside "dpkg --verify finds every file as it was packed" 'test -z "$(dpkg --verify | grep -v " c /\|resolv.conf")"'
inside "dpkg --audit is content" 'test -z "$(dpkg --audit)"'
inside "apt-get purge" 'apt-get -q -y purge hello && ! test -e /usr/bin/hello'
inside "a reinstalled package of the lower" 'apt-get -q -y install --reinstall tzdata && dpkg --verify tzdata'
inside "removing a package of the lower" 'dpkg --purge --force-remove-essential --force-depends ncurses-base; ! test -e /lib/terminfo/l/linux'

# ---- git ----
inside "git commits, packs and checks a repository" '
	mkdir /srv/repo && cd /srv/repo && git init -q -b main && git config user.email a@b && git config user.name c
	for n in 1 2 3 4 5; do cp -r /usr/share/doc/git/. . 2>/dev/null; cp /etc/*.conf .; echo $n >n; git add -A; git commit -qm $n; done
	git gc -q && git fsck --strict'
inside "git clone of a local repository" 'git clone -q /srv/repo /srv/clone && cd /srv/clone && git fsck && test -z "$(git status --porcelain)"'
inside "git worktree, branch, checkout, rename, merge" '
	cd /srv/clone && git config user.email a@b && git config user.name c
	git worktree add -q ../tree -b side && cd ../tree && git mv n m && git commit -qm renamed && cd ../clone && git merge -q side && test -e m
	git checkout -q HEAD~3 && git checkout -q main && test -z "$(git status --porcelain)"'

# ---- a compiler ----
inside "make and gcc" '
	mkdir /srv/c && cd /srv/c
	for n in 1 2 3 4 5 6 7 8; do echo "int f$n(int x) { return x * $n; }" >f$n.c; done
	{ for n in 1 2 3 4 5 6 7 8; do echo "int f$n(int);"; done; echo "#include <stdio.h>
	int main(void) { printf(\"%d\\n\", f1(1)+f2(1)+f3(1)+f4(1)+f5(1)+f6(1)+f7(1)+f8(1)); return 0; }"; } >main.c
	printf "all: \$(patsubst %%.c,%%.o,\$(wildcard *.c))\n\tgcc -o prog \$^\n" >Makefile
	make -s -j4 && test "$(./prog)" = 36 && touch f3.c && make -s && test "$(./prog)" = 36'
inside "a program that writes through a shared map sees it in the file" '
	cd /srv/c && mkdir map && cat >map/m.c <<"C"
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int n, char **v) {
	char got[5] = "";
	int fd = open(v[1], O_RDWR), other = open(v[1], O_RDONLY);
	char *p = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || other < 0 || p == MAP_FAILED) return 1;
	memcpy(p, "MAPD", 4);
	if (msync(p, 4096, MS_SYNC)) return 2;
	if (pread(other, got, 4, 0) != 4 || memcmp(got, "MAPD", 4)) return 3;
	return 0;
}
C
	gcc -o map/m map/m.c && cp /usr/share/common-licenses/GPL-3 /srv/c/new && ./map/m /srv/c/new && head -c4 /srv/c/new | grep -q MAPD
	./map/m /etc/login.defs && head -c4 /etc/login.defs | grep -q MAPD'

# ---- a database ----
inside "sqlite in WAL mode: six writers and a reader at once, on a database of the lower" '
	cd /var/lib && for w in 1 2 3 4 5 6; do
		( for n in $(seq 40); do sqlite3 -cmd ".timeout 60000" lower.db "insert into t values($w, $n);" || exit 1; done ) &
		pids="$pids $!"
	done
	( while sleep 0.2; do sqlite3 -cmd ".timeout 60000" lower.db "pragma quick_check;" | grep -qx ok || exit 1; done ) & reader=$!
	for p in $pids; do wait $p; done; kill $reader
	test "$(sqlite3 lower.db "select count(*) from t")" = 241
	test "$(sqlite3 lower.db "pragma integrity_check")" = ok'
inside "sqlite: four python processes of 100 transactions each" '
	cd /var/lib && python3 - <<"P"
import os, sqlite3
def write(who):
    db = sqlite3.connect("new.db", timeout=60)
    for n in range(100):
        with db:
            db.execute("insert into t values(?, ?)", (who, n))
    os._exit(0)
db = sqlite3.connect("new.db"); db.execute("pragma journal_mode=wal"); db.execute("create table t(w, n)"); db.commit(); db.close()
children = []
for who in range(4):
    pid = os.fork()
    if pid == 0:
        write(who)
    children.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
db = sqlite3.connect("new.db")
assert db.execute("select count(*) from t").fetchone() == (400,)
assert db.execute("pragma integrity_check").fetchone() == ("ok",)
P'

# ---- trees ----
LIMIT=120
inside "cp -a /usr" "$SAME_TREES cp -a /usr /usr-copy && same_trees /usr /usr-copy"
inside "rsync -aHAX /usr, and a second pass finds nothing to do" '
	rsync -aHAX /usr/ /usr-rsync && test -z "$(rsync -aHAXni --delete /usr/ /usr-rsync)"'
inside "rsync's copy is the same, byte for byte" "$SAME_TREES same_trees /usr /usr-rsync"
inside "tar round trip" "$SAME_TREES mkdir /untarred && tar --xattrs --acls -C /etc -cf - . | tar --xattrs --acls -C /untarred -xpf - && same_trees /etc /untarred &&
	tar -cf /tmp/lib.tar /usr/lib/git-core /usr/share/perl /var/lib/dpkg && tar -df /tmp/lib.tar -C /"
inside "rm -rf of copies and of a tree of the lower" 'rm -rf /usr-copy /usr-rsync /untarred /usr/share/zoneinfo && ! test -e /usr/share/zoneinfo'
inside "a tree put where one was deleted holds nothing of it" '
	mkdir /usr/share/zoneinfo && test -z "$(ls -A /usr/share/zoneinfo)" && cp -a /usr/share/doc /usr/share/zoneinfo/'
inside "a directory of the lower is renamed" 'mv /usr/share/common-licenses /usr/share/licences && mv /usr/share/licences /usr/share/common-licenses &&
	python3 -c "import os; os.rename(\"/usr/share/doc\", \"/usr/share/paper\"); os.rename(\"/usr/share/paper\", \"/usr/share/doc\")" && test -e /usr/share/doc/apt'

# ---- readers that were there before the first change ----
LIMIT=30
inside "tail -F follows logs of the lower, small and large, over their copy-up and their rotation" '
	cd /var/log
	tail -n 1 -F small.log large.log >/tmp/followed 2>/dev/null & tail=$!
	sleep 1
	echo "appended small" >>/var/log/small.log; echo "appended large" >>/var/log/large.log
	sleep 2
	for log in small large; do mv /var/log/$log.log /var/log/$log.log.1; echo "rotated $log" >/var/log/$log.log; done
	for i in $(seq 40); do
		test "$(grep -cx "appended small\|appended large\|rotated small\|rotated large" /tmp/followed)" = 4 && break
		sleep 0.25
	done
	kill $tail; cat /tmp/followed; test "$(grep -cx "appended small\|appended large\|rotated small\|rotated large" /tmp/followed)" = 4'
inside "a program that is replaced while it runs; one that runs cannot be written" '
	cp /bin/sleep /usr/bin/copied
	/usr/bin/copied 3 & pid=$!
	sleep 0.5; cp --remove-destination /bin/true /usr/bin/copied && /usr/bin/copied && wait $pid
	sum=$(sha256sum </bin/sleep)
	/bin/sleep 2 & pid=$!
	sleep 0.3; { echo x >>/bin/sleep; } 2>/tmp/busy || true
	wait $pid; grep -q "busy" /tmp/busy && test "$(sha256sum </bin/sleep)" = "$sum"'

# ---- users, devices ----
LIMIT=30
inside "an ordinary user: files of its own, none of others" '
	su -s /bin/bash nobody -c "touch /tmp/mine && rm /tmp/mine && ! touch /etc/x 2>/dev/null && ! cat /etc/shadow 2>/dev/null && ! rm /tmp/lib.tar 2>/dev/null"'
inside "set-user-id programs of lower and upper work" '
	cp /usr/bin/id /usr/bin/id-root && chmod 4755 /usr/bin/id-root && su -s /bin/bash nobody -c "id-root -u" | grep -qx 0 &&
	chmod u+s /usr/bin/whoami && su -s /bin/bash nobody -c whoami | grep -qx root'
inside "device files work" 'mknod /srv/null c 1 3 && echo x >/srv/null && mknod /srv/zero c 1 5 && test "$(head -c 4 /srv/zero | od -An -tx1 | tr -d " ")" = 00000000'
inside "hard links of the lower stay linked over a copy-up" 'echo changed >>/etc/hostname && cmp /etc/hostname /etc/hostname-too && test /etc/hostname -ef /etc/hostname-too'

# ---- after a remount ----
leave_chroot
enter || finish
inside "after a remount: packages" 'dpkg -s gcc >/dev/null && test -z "$(dpkg --verify gcc git make)" && ! test -e /usr/bin/hello'
inside "after a remount: git" 'cd /srv/clone && git fsck && test -z "$(git status --porcelain)"'
inside "after a remount: sqlite" 'test "$(sqlite3 /var/lib/lower.db "pragma integrity_check; select count(*) from t" | tr "\n" " ")" = "ok 241 "'
inside "after a remount: trees" 'test -e /usr/share/zoneinfo/doc && test "$(ls -A /usr/share/zoneinfo)" = doc && test -e /usr/share/common-licenses/GPL-3'
inside "after a remount: links" 'cmp /etc/hostname /etc/hostname-too && test /etc/hostname -ef /etc/hostname-too'
leave_chroot

digest debian >lower.after
same "the lower is what it was, to the last byte, time and attribute" lower.before lower.after
finish
