#!/bin/bash
# uWSGI's Emperor with two customers, each pivoted into its own union of one shared root: the hosting recipe, word for word.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/clients/hosting.bash"
PORTS=([1]=47191 [2]=47192)
# What the recipe may need to serve again, in tenths of a second.
PATIENCE=600

digest() {
	(cd "$1" && find . -printf '%y %m %U:%G %s %n %i %T@ %C@ %l %p\n' | sort -k 10
		find . -type f -print0 | sort -z | xargs -0 sha256sum
		getfattr -hR -d -m - . 2>/dev/null)
}

# ask CUSTOMER REQUEST: what the customer's program answers, as JSON.
ask() { curl -sS -m 10 --noproxy '*' -G "http://127.0.0.1:${PORTS[$1]}/" --data-urlencode "do=$2" 2>&1; }

# serves CUSTOMER: waits until it answers.
serves() {
	local i
	for ((i = 0; i < PATIENCE; i++)); do
		[ "$(ask "$1" "40 + 2")" = 42 ] && return 0
		sleep 0.1
	done
	echo "customer $1 does not answer: $(ask "$1" "40 + 2")"
	tail -n 25 emperor.log
	return 1
}

# of CUSTOMER: the pid of the union's daemon.
daemon_of() { pgrep -f "/cow/u$1=[R]W" | head -n 1; }

# same_answer NAME CUSTOMER REQUEST ANSWER
same_answer() { equal "$1" "$(ask "$2" "$3")" "$4"; }

hosting

check "a root of the test's own" own_root || finish
# As on a machine with systemd: without the recipe's first hook, unions would spread to the host and to the other customer.
mount --make-rshared /
cp /etc/passwd /etc/group .test/
for n in 1 2; do
	echo "u$n:x:4712$n:4712$n::/nonexistent:/bin/sh" >>.test/passwd
	echo "u$n:x:4712$n:" >>.test/group
done
mount --bind .test/passwd /etc/passwd && mount --bind .test/group /etc/group

mkdir ns && mount --bind ns /ns
mkdir -p /ns/precise /ns/cow/u1 /ns/cow/u2 vassals
cp -a "$CACHE/uwsgi-root/." /ns/precise
mkdir -p /ns/precise/.old_root /ns/precise/srv/data/dir/sub
for f in kept deleted changed replaced dir/a dir/b dir/sub/c; do echo "shared $f" >"/ns/precise/srv/data/$f"; done
chmod -R a+rwX /ns/precise/srv/data
# uWSGI looks the customer up after the pivot, so the shared root knows it too.
grep '^u[12]:' .test/passwd >>/ns/precise/etc/passwd
grep '^u[12]:' .test/group >>/ns/precise/etc/group
cat >/ns/precise/srv/app.py <<'APP'
"""Answers what a Python expression gives; the test asks, the customer's own process acts."""
import json, os, shutil, stat, subprocess
from urllib.parse import parse_qs

os.umask(0o022)

def write(path, text, how="w"):
    with open(path, how) as file:
        file.write(text)
    return os.stat(path).st_uid

def read(path):
    with open(path) as file:
        return file.read()

def application(environ, start_response):
    try:
        answer = json.dumps(eval(parse_qs(environ["QUERY_STRING"])["do"][0]))
    except BaseException as error:
        answer = f"{type(error).__name__} {getattr(error, 'errno', '')}"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.encode()]
APP
for n in 1 2; do
	vassal $n /precise "" "${PORTS[$n]}" "processes = 2" >"u$n.ini"
done
digest /ns/precise >precise.before
awk '{ print $5, $NF }' /proc/self/mountinfo | sort >mounts.before
cp u1.ini u2.ini vassals/

# ---- the Emperor, with as little environment as it can have ----
env -i PATH="$T/.test:/usr/sbin:/usr/bin:/sbin:/bin" uwsgi --emperor "$T/vassals" --emperor-use-clone fs,pid \
	--emperor-required-heartbeat 60 >emperor.log 2>&1 9>&- &
EMPEROR=$!
for n in 1 2; do check "customer $n serves" serves "$n" || finish; done
first=$(daemon_of 1) second=$(daemon_of 2)
check "each customer has a daemon" [ -n "$first" -a -n "$second" ]
awk '{ print $5, $NF }' /proc/self/mountinfo | sort >mounts.during
same "no union is seen outside its customer" mounts.before mounts.during

# ---- what a customer sees ----
same_answer "the program runs as its customer" 1 "[os.getuid(), os.getgid()]" "[47121, 47121]"
same_answer "the root is the union" 1 "[l.split()[1] for l in open('/proc/self/mounts') if 'fuse' in l.split()[2]]" '["/"]'
same_answer "nothing of the old root is left" 1 "os.listdir('/.old_root')" "[]"
same_answer "only its own processes are there" 1 "all('cow/u2' not in read(f'/proc/{p}/cmdline') for p in os.listdir('/proc') if p.isdigit())" true
same_answer "the shared tree is there" 2 "sorted(os.listdir('/srv/data'))" '["changed", "deleted", "dir", "kept", "replaced"]'

# ---- writing, and what the other customer sees of it ----
same_answer "a new file has its customer's uid" 1 "write('/srv/data/new', 'mine')" 47121
same_answer "a file is changed" 1 "write('/srv/data/changed', 'by u1', 'a')" 0
same_answer "its content is old and new" 1 "read('/srv/data/changed')" '"shared changed\nby u1"'
same_answer "a file is deleted" 1 "os.unlink('/srv/data/deleted')" null
same_answer "a directory is deleted with all below" 1 "shutil.rmtree('/srv/data/dir')" null
same_answer "a directory is made where one was deleted" 1 "[os.mkdir('/srv/data/dir'), os.listdir('/srv/data/dir')]" "[null, []]"
same_answer "a file is replaced by rename" 1 "[write('/srv/data/x', 'other'), os.rename('/srv/data/x', '/srv/data/replaced'), read('/srv/data/replaced')]" '[47121, null, "other"]'
same_answer "chmod, link, symlink, utime" 1 "[os.chmod('/srv/data/new', 0o600), os.link('/srv/data/new', '/srv/data/link'), os.symlink('new', '/srv/data/sym'), os.utime('/srv/data/new', (1, 1)), os.stat('/srv/data/sym').st_nlink]" "[null, null, null, null, 2]"
same_answer "extended attributes" 1 "[os.setxattr('/srv/data/new', 'user.a', b'1'), os.getxattr('/srv/data/new', 'user.a').decode()]" '[null, "1"]'
same_answer "a program is run" 1 "subprocess.run(['/bin/sh', '-c', 'ls /srv/data | sort -r | head -n 1'], capture_output=True).stdout.decode()" '"sym\n"'
same_answer "what belongs to root stays so" 1 "write('/etc/passwd', 'x', 'a')" "PermissionError 13"
same_answer "the customer sees its own tree" 1 "sorted(os.listdir('/srv/data'))" '["changed", "dir", "kept", "link", "new", "replaced", "sym"]'
same_answer "the other customer's tree is untouched" 2 "sorted(os.listdir('/srv/data') + os.listdir('/srv/data/dir'))" '["a", "b", "changed", "deleted", "dir", "kept", "replaced", "sub"]'
same_answer "the other customer's file is untouched" 2 "read('/srv/data/changed') + read('/srv/data/replaced') + read('/srv/data/deleted')" '"shared changed\nshared replaced\nshared deleted\n"'
same_answer "the other customer writes the same name" 2 "write('/srv/data/new', 'of two')" 47122
same_answer "each has its own file of that name" 1 "read('/srv/data/new')" '"mine"'
equal "what a customer writes lands in its branch, with its uid" "$(stat -c '%u %a' /ns/cow/u1/srv/data/new)" "47121 600"
equal "the other's in the other's" "$(stat -c %u /ns/cow/u2/srv/data/new)" 47122
equal "copied-up parents keep owner and mode" "$(stat -c '%u %a' /ns/cow/u1/srv)" "$(stat -c '%u %a' /ns/precise/srv)"

# ---- the daemon dies ----
began=$(date +%s%N)
kill -KILL "$first"
check "the daemon is gone" bash -c 'for i in {1..300}; do kill -0 '"$first"' 2>/dev/null || exit 0; sleep 0.1; done; exit 1'
for ((i = 0; i < PATIENCE; i++)); do
	[ -n "$(daemon_of 1)" ] && [ "$(daemon_of 1)" != "$first" ] && break
	sleep 0.1
done
check "after kill -9 of its daemon the instance is made anew and serves" serves 1
echo "# it served again $((($(date +%s%N) - began) / 1000000)) ms after the kill"
check "by a new daemon" [ "$(daemon_of 1)" != "$first" ]
check "the other customer's daemon lives on" [ "$(daemon_of 2)" = "$second" ]
same_answer "the other customer serves" 2 "40 + 2" 42
same_answer "all is as it was: names" 1 "sorted(os.listdir('/srv/data') + os.listdir('/srv/data/dir'))" '["changed", "dir", "kept", "link", "new", "replaced", "sym"]'
same_answer "all is as it was: contents" 1 "[read('/srv/data/changed'), read('/srv/data/link'), os.stat('/srv/data/new').st_nlink]" '["shared changed\nby u1", "mine", 2]'
same_answer "and writing goes on" 1 "[write('/srv/data/after', 'x'), os.unlink('/srv/data/kept')]" "[47121, null]"

# ---- reload, removal, return ----
before=$(daemon_of 2)
touch vassals/u2.ini
for ((i = 0; i < PATIENCE; i++)); do [ "$(daemon_of 2)" != "$before" ] && break; sleep 0.1; done
check "after a touch of its file a customer serves again" serves 2
same_answer "with its data" 2 "read('/srv/data/new')" '"of two"'
rm vassals/u1.ini
for ((i = 0; i < PATIENCE; i++)); do [ -z "$(daemon_of 1)" ] && break; sleep 0.1; done
equal "a customer that is taken away leaves no daemon" "$(daemon_of 1)" ""
cp u1.ini vassals/
check "a customer that returns serves" serves 1
same_answer "with its data and its deletions" 1 "sorted(os.listdir('/srv/data'))" '["after", "changed", "dir", "link", "new", "replaced", "sym"]'

# ---- a union that cannot be mounted ----
mv /ns/cow/u2 /ns/cow/away
kill -KILL "$(daemon_of 2)"
for i in {1..300}; do grep -q "cow/u2.*\(No such\|not\)" emperor.log && break; sleep 0.1; done
check "a missing branch is named in the Emperor's log" grep -q "cow/u2" emperor.log
same_answer "and the other customer serves on" 1 "40 + 2" 42
mv /ns/cow/away /ns/cow/u2
check "when the branch is back, so is the customer" serves 2
same_answer "with its data again" 2 "read('/srv/data/new')" '"of two"'

# ---- the end ----
kill -INT "$EMPEROR"
for ((i = 0; i < PATIENCE; i++)); do kill -0 "$EMPEROR" 2>/dev/null || break; sleep 0.1; done
wait "$EMPEROR" 2>/dev/null
for i in {1..300}; do [ -z "$(pgrep -f '[/]cow/u'; pgrep -x uwsgi)" ] && break; sleep 0.1; done
equal "no process is left" "$(pgrep -af '[/]cow/u'; pgrep -ax uwsgi)" ""
check "no daemon is left" no_daemon_left
awk '{ print $5, $NF }' /proc/self/mountinfo | sort >mounts.after
same "no mount is left" mounts.before mounts.after
digest /ns/precise >precise.after
same "the shared root is what it was, to the last byte, time and attribute" precise.before precise.after
finish
