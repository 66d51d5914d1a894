#!/bin/bash
# The hosting recipe under load: daemons killed twenty times with nothing lost, a branch that hangs and the watchdog, fifty
# customers at once, and nothing left of those who go.
# timeout: 420
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/clients/hosting.bash"
MOST=50 DEATHS=20
[ -z "${SHORT-}" ] || MOST=10 DEATHS=4
hosting
check "a root of the test's own" own_root || finish
mount --make-rshared /
cp /etc/passwd /etc/group .test/
mkdir ns && mount --bind ns /ns
mkdir -p /ns/precise /ns/cow vassals inis base
cp -a "$CACHE/uwsgi-root/." /ns/precise
mkdir -p /ns/precise/.old_root /ns/precise/srv/data /ns/far
chmod 1777 /ns/precise/srv/data
for ((n = 1; n <= MOST; n++)); do
	mkdir "/ns/cow/u$n"
	echo "u$n:x:$((47200 + n)):$((47200 + n))::/nonexistent:/bin/sh" | tee -a .test/passwd >>/ns/precise/etc/passwd
	echo "u$n:x:$((47200 + n)):" | tee -a .test/group >>/ns/precise/etc/group
done
mount --bind .test/passwd /etc/passwd && mount --bind .test/group /etc/group
cat >/ns/precise/srv/app.py <<'APP'
"""/N appends line N to the log and syncs it before it answers N; /who says who answers; /read/NAME reads /usr/share/NAME."""
import os

def application(environ, start_response):
    path = environ["PATH_INFO"][1:]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "who":
        return [b"%d" % os.getuid()]
    if path.startswith("read/"):
        return [b"%d" % len(os.listdir("/usr/share/" + path[5:]))]
    with open("/srv/data/log", "ab", buffering=0) as log:
        log.write(b"%09d %s\n" % (int(path), b"x" * (int(path) % 100)))
        os.fsync(log.fileno())
    return [path.encode()]
APP
# ini NAME BRANCH OPTIONS
ini() { vassal "$1" "$2" "$3" $((47200 + $1)) "disable-logging = true" >"inis/u$1.ini"; }
for ((n = 1; n <= MOST; n++)); do ini $n /precise ""; done
# Every second of the many: `rprivate` in place of the first hook.
for ((n = 3; n <= MOST; n += 2)); do
	ini $n /precise ,rprivate
	sed -i '/^hook-pre-jail = mount:none none/d' "inis/u$n.ini"
done
equal "half of them do without the first hook" "$(grep -L 'rec,private' inis/* | wc -l)" $((MOST / 2 - 1))
# Not `daemons`: after the pivot a daemon's program has no path.
unions() { pgrep -f '/cow/u[0-9]*=[R]W'; }
daemon_of() { pgrep -f "/cow/u$1=[R]W" | head -n 1; }
ask() { curl -sS -m "${3:-5}" --noproxy '*' "http://127.0.0.1:$((47200 + $1))/$2" 2>&1; }
# serves CUSTOMER: waits until it answers.
serves() {
	local i
	for i in {1..600}; do
		[ "$(ask "$1" who)" = $((47200 + $1)) ] && return 0
		sleep 0.1
	done
	echo "customer $1 does not answer: $(ask "$1" who)"
	tail -n 20 emperor.log
	return 1
}
digest() { (cd /ns/precise && find . -printf '%y %m %U:%G %s %n %i %T@ %C@ %l %p\n' | sort -k 10; find . -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum; }
before=$(digest)
awk '{ print $5, $NF }' /proc/self/mountinfo | sort >mounts.before
env -i PATH="$T/.test:/usr/sbin:/usr/bin:/sbin:/bin" uwsgi --emperor "$T/vassals" --emperor-use-clone fs,pid \
	--emperor-freq 1 --emperor-required-heartbeat 120 >emperor.log 2>&1 9>&- &
EMPEROR=$!

# ---- twenty deaths under load ------------------------------------------------------------------------------------------

cp inis/u1.ini vassals/
check "customer 1 serves" serves 1 || finish
# Each number until it has been answered: what was answered has been synced.
cat >load.py <<'P'
import sys, urllib.request
port, acked = sys.argv[1:]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
number = 0
with open(acked, "a", buffering=1) as file:
    while True:
        number += 1
        while True:
            try:
                if opener.open(f"http://127.0.0.1:{port}/{number}", timeout=5).read() == b"%d" % number:
                    break
            except OSError:
                pass
        file.write(f"{number}\n")
P
/usr/bin/python3 load.py 47201 acked &
LOAD=$!
slowest=0
for ((turn = 1; turn <= DEATHS; turn++)); do
	sleep 0.3
	until victim=$(daemon_of 1) && [ -n "$victim" ]; do sleep 0.05; done
	began=$(date +%s%N)
	kill -KILL "$victim"
	for i in {1..600}; do
		[ -n "$(daemon_of 1)" ] && [ "$(daemon_of 1)" != "$victim" ] && [ "$(ask 1 who 1)" = 47201 ] && break
		sleep 0.1
	done
	took=$((($(date +%s%N) - began) / 1000000))
	[ $took -lt 55000 ] || fail "death $turn: it does not serve again"
	[ $took -le $slowest ] || slowest=$took
done
sleep 0.3
kill $LOAD
echo "# it served again after $slowest ms at most; $(wc -l <acked) requests were answered"
check "requests were answered" [ "$(wc -l <acked)" -gt 100 ]
cat >judge.py <<'P'
import re, sys
lines = open(sys.argv[1], "rb").read().split(b"\n")
if lines.pop(): sys.exit("the last line is torn")
numbers = set()
for line in lines:
    found = re.fullmatch(rb"(\d{9}) (x*)", line)
    if not found or len(found[2]) != int(found[1]) % 100: sys.exit(f"damaged: {line!r}")
    numbers.add(int(found[1]))
lost = [number for number in map(int, open(sys.argv[2])) if number not in numbers]
if lost: sys.exit(f"lost: {lost[:10]}")
P
check "after $DEATHS deaths nothing that was answered is lost" /usr/bin/python3 judge.py /ns/cow/u1/srv/data/log acked
check "one daemon" [ "$(pgrep -fc '/cow/u1=[R]W')" = 1 ]

# ---- a branch that does not answer -------------------------------------------------------------------------------------

check "a root on a server" union -o allow_other,dev,suid /ns/precise=RO /ns/far
FAR=$(pgrep -f ' /ns/far$')
awk '{ print $5, $NF }' /proc/self/mountinfo | sort >mounts.far
ini 2 /far ,watchdog=3
cp inis/u2.ini vassals/
check "customer 2 serves from it" serves 2
D=$(daemon_of 2)
stop "$FAR"
ask 2 read/doc 30 >/dev/null &
for i in {1..300}; do kill -0 "$D" 2>/dev/null || break; sleep 0.1; done
check "the watchdog ends the daemon" bash -c "! kill -0 $D 2>/dev/null"
check "the other customer serves" [ "$(ask 1 who)" = 47201 ]
kill -CONT "$FAR"
check "when the server is back, so is the customer" serves 2
check "by a new daemon" [ "$(daemon_of 2)" != "$D" ]
rm vassals/u2.ini
for i in {1..300}; do [ -z "$(daemon_of 2)" ] && break; sleep 0.1; done
equal "it goes" "$(daemon_of 2)" ""
check "and the server's mount with it" unmount /ns/far
ini 2 /precise ""

# ---- fifty customers ---------------------------------------------------------------------------------------------------

began=$(date +%s%N)
for ((n = 2; n <= MOST; n++)); do cp inis/u$n.ini vassals/; done
failed=0
for ((n = 1; n <= MOST; n++)); do serves $n >serves.log || { failed=$((failed + 1)); cat serves.log; }; done
echo "# $MOST customers served after $((($(date +%s%N) - began) / 1000000)) ms"
equal "all $MOST serve" $failed 0
for ((n = 2; n <= MOST; n++)); do ask $n $n >/dev/null & done
for ((n = 2; n <= MOST; n++)); do wait -n 2>/dev/null; done
sleep 1
equal "each has its own line, and its own only" "$(for ((n = 2; n <= MOST; n++)); do printf '%s ' "$(cut -d' ' -f1 "/ns/cow/u$n/srv/data/log")"; done)" "$(for ((n = 2; n <= MOST; n++)); do printf '%09d ' $n; done)"
equal "with its own uid" "$(stat -c %u $(seq -f /ns/cow/u%.0f/srv/data/log 2 $MOST) | sort -n | tr '\n' ' ')" "$(seq -s " " 47202 $((47200 + MOST))) "
equal "a daemon each" "$(unions | wc -w)" $MOST
awk '{ print $5, $NF }' /proc/self/mountinfo | sort >mounts.during
same "no union is seen outside its customer" mounts.before mounts.during
pss=$(for p in $(unions); do awk '/^Pss:/ { print $2 }' "/proc/$p/smaps_rollup"; done | awk '{ s += $1 } END { print s / NR }')
echo "# a daemon's share of memory: $pss KiB"

# ---- and all of them go ------------------------------------------------------------------------------------------------

rm vassals/*.ini
for i in {1..300}; do [ -z "$(unions)" ] && break; sleep 0.1; done
equal "no daemon is left" "$(unions)" ""
free=0
for ((n = 1; n <= MOST; n++)); do flock -n "/ns/cow/u$n" true && free=$((free + 1)); done
equal "every branch is free" $free $MOST
kill -INT "$EMPEROR"
wait "$EMPEROR" 2>/dev/null
for i in {1..300}; do pgrep -x uwsgi >/dev/null || break; sleep 0.1; done
equal "no process is left" "$(pgrep -ax uwsgi)" ""
awk '{ print $5, $NF }' /proc/self/mountinfo | sort >mounts.after
same "no mount is left" mounts.before mounts.after
equal "the shared root is what it was" "$(digest)" "$before"
finish
