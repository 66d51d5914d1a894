# What real programs do in a Debian root: told in a chroot, on whatever filesystem the root is. Sourced after cache.bash (or
# with $CACHE set), by a test that defines
#   inside NAME SCRIPT    runs SCRIPT by bash -e in the chroot for $LIMIT seconds, and notes whether it succeeded
# (`in_debian` does the running). Scripts stand alone but for what earlier ones leave on the disk.

# prepare_debian DIR: a copy of the minimal Debian 12, with what the stories find in it.
prepare_debian() {
	cp -a "$CACHE/bookworm" "$1"
	cp /etc/resolv.conf "$1"/etc/resolv.conf
	printf '#!/bin/sh\nexit 101\n' >"$1"/usr/sbin/policy-rc.d && chmod 755 "$1"/usr/sbin/policy-rc.d
	# A database that is in the lower, with a journal mode that needs shared memory.
	sqlite3 "$1"/var/lib/lower.db "pragma journal_mode=wal; create table t(writer, n); insert into t values('lower', 0);" >/dev/null
	rm -f "$1"/var/lib/lower.db-*
	# Logs of the lower that grow while they are followed: one small, one that is large enough to be passed through.
	echo "first line" >"$1"/var/log/small.log
	yes "a line that was there" | head -c 300000 >"$1"/var/log/large.log
	ln "$1"/etc/hostname "$1"/etc/hostname-too
	setcap cap_net_raw+ep "$1"/bin/ping 2>/dev/null || setfattr -n user.note -v kept "$1"/usr/bin/perl
}

# enter_debian DIR, leave_debian DIR: what a chroot needs, and the packages fetched before.
enter_debian() {
	mkdir -p "$CACHE/archives/partial"
	mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount --bind "$CACHE/archives" "$1/var/cache/apt/archives"
}
leave_debian() { umount -l "$1"/{proc,dev,var/cache/apt/archives}; }

# in_debian DIR SCRIPT
in_debian() {
	timeout -k 5 "${LIMIT:-90}" chroot "$1" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive TERM=dumb /bin/bash -ec "$2"
}

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


# The stories that every run tells.
stories() {

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
LIMIT=60
inside "tail -F follows logs of the lower, small and large, over their copy-up and their rotation" '
	cd /var/log
	tail -n 1 -F small.log large.log >/tmp/followed 2>/dev/null & tail=$!
	sleep 1
	echo "appended small" >>/var/log/small.log; echo "appended large" >>/var/log/large.log
	for i in $(seq 40); do
		test "$(grep -cx "appended small\|appended large" /tmp/followed)" = 2 && break
		sleep 0.25
	done
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
	/bin/sleep 4 & pid=$!
	sleep 1.5; { echo x >>/bin/sleep; } 2>/tmp/busy || true
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
}

# Further programs, with many packages to install: a database server, a package builder, an interpreter's environments.
further_stories() {

LIMIT=300
inside "apt-get installs PostgreSQL, Cargo and Python environments" '
	apt-get -q -y install --no-install-recommends postgresql-15 cargo python3-venv python3-pip'

# ---- a database server ----
LIMIT=120
inside "postgres: initdb, pgbench, immediate stop, recovery" '
	install -d -o postgres /srv/pg
	as() { setpriv --reuid=postgres --regid=postgres --init-groups env PATH=$PATH:/usr/lib/postgresql/15/bin LC_ALL=C "$@"; }
	ctl() { as pg_ctl -s -w -D /srv/pg/data -l /srv/pg/log "$@"; }
	as initdb -D /srv/pg/data >/dev/null
	ctl -o "-k /tmp -h \"\"" start
	trap "ctl -m immediate stop 2>/dev/null || true" EXIT
	as pgbench -q -i -s 2 -h /tmp postgres 2>/dev/null
	as pgbench -n -c 4 -t 200 -h /tmp postgres >/dev/null 2>&1
	as pgbench -n -c 4 -T 30 -h /tmp postgres >/dev/null 2>&1 & load=$!
	sleep 3
	ctl -m immediate stop
	wait $load || true
	ctl -o "-k /tmp -h \"\"" start
	test "$(as psql -Atq -h /tmp postgres -c "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
		and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)
		and (select count(*) from pgbench_history) >= 800")" = t
	as psql -q -h /tmp postgres -c "vacuum full" -c "reindex database postgres" -c checkpoint
	ctl -m fast stop; trap - EXIT'
inside "sqlite: a writer is killed again and again, and nothing committed is lost" '
	cd /var/lib && python3 - <<"P"
import os, random, signal, sqlite3, time
db = sqlite3.connect("killed.db"); db.execute("pragma journal_mode=wal"); db.execute("create table t(n)"); db.commit(); db.close()
for mode in ("wal", "delete", "wal", "delete", "wal", "delete"):
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        db = sqlite3.connect("killed.db", timeout=60)
        db.execute(f"pragma journal_mode={mode}")
        for n in range(10 ** 6):
            with db:
                db.execute("insert into t values(?)", (n,))
            os.write(tell, b".")
    os.close(tell)
    os.read(told, 1)
    time.sleep(random.random() / 2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    done, piece = 1, os.read(told, 1 << 16)
    while piece:
        done, piece = done + len(piece), os.read(told, 1 << 16)
    db = sqlite3.connect("killed.db", timeout=60)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert db.execute("select count(*) from t").fetchone()[0] >= done, mode
    db.execute("delete from t"); db.commit(); db.close()
P'

# ---- builders ----
inside "cargo: a library and a program, built, tested, changed, built again, cleaned" '
	cd /srv && cargo -q new --vcs none --lib lib && cargo -q new --vcs none prog
	grep -q "^.dependencies.$" prog/Cargo.toml && echo "lib = { path = \"../lib\" }" >>prog/Cargo.toml
	echo "pub fn f() -> u32 { 41 } #[test] fn t() { assert_eq!(f(), 41); }" >lib/src/lib.rs
	echo "fn main() { println!(\"{}\", lib::f()); }" >prog/src/main.rs
	cd prog && test "$(cargo -q run --offline)" = 41 && (cd ../lib && cargo -q test --offline)
	sleep 1.1; sed -i "s/41/42/g" ../lib/src/lib.rs
	test "$(cargo -q run --offline)" = 42 && cargo -q build --release --offline && cargo clean && ! test -e target'
inside "python: environments with symlinks and copies, pip installs a package and removes it" '
	mkdir -p /srv/py/pack/mine && cd /srv/py
	echo "from setuptools import setup; setup(name=\"mine\", version=\"1\", packages=[\"mine\"])" >pack/setup.py; echo "x = 7" >pack/mine/__init__.py
	for how in --symlinks --copies; do
		python3 -m venv $how env$how
		env$how/bin/pip -q --disable-pip-version-check install --no-index --no-build-isolation ./pack 2>/dev/null
		test "$(env$how/bin/python -c "import mine; print(mine.x)")" = 7
		env$how/bin/pip -q uninstall -y mine && ! env$how/bin/python -c "import mine" 2>/dev/null
	done
	python3 -m compileall -q env--copies && rm -rf env--copies env--symlinks'

# ---- trees ----
inside "find and rm -rf at once in a tree of many directories" '
	mkdir /srv/many && cd /srv/many && python3 -c "
import os
for a in range(40):
    for b in range(10):
        os.makedirs(f\"{a}/{b}\")
        for c in range(10):
            open(f\"{a}/{b}/{c}\", \"w\").close()"
	test "$(find . -type f | wc -l)" = 4000
	find . -type f >/dev/null 2>&1 & find=$!
	rm -rf ./* && wait $find || true
	test -z "$(ls -A)" && cd / && rmdir /srv/many'
inside "git clone in all its ways: by links, by copies, shared; and a shallow one" '
	cd /srv && for how in --local --no-hardlinks --shared; do
		git clone -q $how repo by$how && (cd by$how && git fsck && git repack -q -a -d && test -z "$(git status --porcelain)") && rm -rf by$how
	done
	git clone -q --depth 1 file:///srv/repo shallow && test "$(git -C shallow rev-list --count HEAD)" = 1'
}
