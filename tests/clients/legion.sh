#!/bin/bash
# uWSGI's Legion of three nodes on one upper: the lord holds the union, by the hooks of GUIDE.md. Hand-over at a clean stop, kill -9
# of the lord with and without its daemon, a lord that hangs, no quorum: never two daemons, no line lost that was synced.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
need uwsgi=uwsgi-core ip=iproute2
GUIDE=$TEST_DIR/../GUIDE.md

mkdir low up view .test/bin
: >low/log
ln -s ../cowfs .test/bin/cowfs
# What the guide says, with the test's own directories.
sed -n '/^    legion-lord/,/^$/p' "$GUIDE" | sed "s|/srv/tree|$T/low|; s|/srv/changes|$T/up|; s|/srv/view|$T/view|; s/^ *//" >hooks
equal "the guide has the hooks" "$(grep -c '^legion-\(lord\|unlord\|setup\|death\) = shop cmd:' hooks)" 4

# A network of its own for all nodes. Each node is a machine: it has its own mounts and processes.
unshare -n sleep 1000 &
NET=$!
disown $NET
for i in {1..600}; do [ "$(readlink "/proc/$NET/ns/net")" != "$(readlink /proc/self/ns/net)" ] && break; sleep 0.05; done
nsenter -t $NET -n ip link set lo up

# As a program that serves does it: opens the log, appends a line, syncs it, and only then says so.
cat >writer.py <<'P'
import os, sys, time
node, log, acked = sys.argv[1:]
safe = os.open(acked, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while True:
    number += 1
    line = b"node %s boot %d line %d %s\n" % (node.encode(), os.getppid() * 100000 + time.time_ns() % 100000, number, b"x" * (number % 300))
    try:
        file = os.open(log, os.O_WRONLY | os.O_APPEND)
        try:
            if os.write(file, line) == len(line):
                os.fsync(file)
                os.write(safe, line)
        finally:
            os.close(file)
    except OSError:
        time.sleep(0.02)
    time.sleep(0.003)
P
# Every line that was told is in the log, and every line of the log is whole.
cat >judge.py <<'P'
import re, sys
log, acked = (open(path, "rb").read() for path in sys.argv[1:])
lines = log.split(b"\n")
if lines.pop(): sys.exit("the last line is torn")
for line in lines:
    found = re.fullmatch(rb"node \d boot \d+ line (\d+) (x*)", line)
    if not found or len(found[2]) != int(found[1]) % 300: sys.exit(f"damaged: {line[:60]}")
kept = set(lines)
lost = [line[:60] for line in acked.splitlines() if line not in kept]
if lost: sys.exit(f"lost: {len(lost)}, first {lost[0]}")
if len(kept) < 100: sys.exit("hardly anything was written")
P
# Counts, as fast as it can, the daemons that serve: they have /dev/fuse open. Says the most that it saw.
cat >watcher.py <<'P'
import os, signal, sys
def serves(pid):
    try:
        if open(f"/proc/{pid}/comm").read() != "cowfs\n": return False
        return any(os.readlink(f"/proc/{pid}/fd/{fd}").endswith("/fuse") for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError: return False
most = looks = 0
def end(*_):
    print(most, "of", looks, "looks", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
while True:
    most = max(most, sum(serves(pid) for pid in os.listdir("/proc") if pid.isdigit()))
    looks += 1
    signal.sigtimedwait([signal.SIGUSR1], 0.005)
P

# boot NODE: the machine, its Legion's member and its writer. The higher the number, the better a lord.
boot() {
	local other others=()
	for other in 1 2 3; do [ "$other" = "$1" ] || others+=(--legion-node "shop 127.0.0.1:500$other"); done
	cat >"ini.$1" <<I
[uwsgi]
master = true
processes = 1
legion = shop 127.0.0.1:500$1 ${1}0 aes-128-cbc:0123456789abcdef 0123456789abcdef
legion-freq = 1
legion-tolerance = 3
legion-quorum = shop 2
$(cat hooks)
I
	setsid nsenter --net=/proc/$NET/ns/net unshare -mpf --mount-proc --kill-child=KILL bash -c '
		node=$1; shift
		PATH="$T/.test/bin:$PATH" uwsgi --http-socket "127.0.0.1:600$node" --ini "$T/ini.$node" "$@" &
		/usr/bin/python3 "$T/writer.py" "$node" "$T/view/log" "$T/acked.$node" &
		while true; do sleep 100 & wait $!; done' "machine$1" "$1" "${others[@]}" >>"node.$1" 2>&1 9>&- &
	MACHINE[$1]=$!
}
# power_off NODE: at once, with all that runs there.
power_off() { kill -KILL "${MACHINE[$1]}"; wait "${MACHINE[$1]}" 2>/dev/null; }
member_of() { pgrep -f "uwsgi .*ini\.$1( |$)" | head -n 1; }
server() { /usr/bin/python3 - <<'P'
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if open(f"/proc/{pid}/comm").read() == "cowfs\n" and any(
            os.readlink(f"/proc/{pid}/fd/{fd}").endswith("/fuse") for fd in os.listdir(f"/proc/{pid}/fd")):
            print(pid)
    except OSError: pass
P
}
lines_of() { stat -c %s "acked.$1" 2>/dev/null || echo 0; }
# lord NAME NODE: this node's writer is told that lines are safe.
lord() {
	local name=$1 node=$2 had began=$(date +%s%N) i
	had=$(lines_of "$node")
	for i in {1..600}; do
		[ "$(lines_of "$node")" -gt "$had" ] && break
		sleep 0.1
	done
	if [ "$i" -lt 600 ]; then pass "$name"; echo "# after $((($(date +%s%N) - began) / 1000000)) ms"; else
		fail "$name: node $node does not serve"
		tail -n 5 node.?
		ps -eo pid,ppid,args | grep '[c]owfs'
		return 1
	fi
}
# quiet NODE: whether its writer is told of nothing for a second.
quiet() { local had; had=$(lines_of "$1"); sleep 1; [ "$(lines_of "$1")" = "$had" ]; }
waiting() { local all; all=$(pgrep -x cowfs | wc -l); [ "$all" -gt 1 ]; }

/usr/bin/python3 watcher.py >watched 9>&- &
WATCHER=$!
for n in 1 2 3; do boot $n; done
lord "the strongest of three is lord, and serves" 3 || finish
check "the others do not" eval 'quiet 2 && quiet 1'

kill -INT "$(member_of 3)"
lord "after a clean stop the next one serves" 2
check "the lord that was does not" quiet 3
power_off 3
boot 3
lord "the stronger one is back: handed back" 3
check "the lord that was does not serve" quiet 2

power_off 3
lord "kill -9 of the lord and its daemon: the next one serves" 2
boot 3
lord "handed back" 3

# The legion's member dies, and its daemon lives on and keeps the upper.
kill -KILL $(pgrep -f "uwsgi .*ini\.3( |$)")
check "kill -9 of the lord without its daemon: the next one waits" until_true 60 waiting
lord "the daemon goes on serving" 3
check "and the next one does not serve meanwhile" quiet 2
kill -KILL $(server)
lord "when the daemon is gone the next one takes over" 2
power_off 3

if long "a lord that hangs, and no quorum"; then
	boot 3
	lord "handed back" 3
	# The others think that it is dead. It is not, and comes back: whoever waited in its place gives up.
	stopped=$(pgrep -f "uwsgi .*ini\.3( |$)")
	stop $stopped
	check "a lord that hangs: the next one waits" until_true 60 waiting
	check "and does not serve" quiet 2
	kill -CONT $stopped
	check "it comes back: nobody waits any more" until_true 60 not waiting
	lord "it serves as before" 3
	power_off 2
	power_off 3
	sleep 5
	check "one of three is no quorum: nobody serves" eval 'quiet 1 && [ -z "$(pgrep -x cowfs)" ]'
	boot 2
	lord "two are" 2
fi

for n in 1 2; do kill -INT "$(member_of $n)"; done
check "all stop: no daemon is left" no_daemon_left
for n in 1 2; do power_off $n; done
check "the upper is free" flock -n up true
kill -TERM $WATCHER
wait $WATCHER
equal "never two daemons at once" "$(cut -d' ' -f1,2 watched)" "1 of"
echo "# $(cat watched), $(cat acked.? | wc -l) lines"
check "no line that was synced is lost, none is damaged" eval 'cat acked.? >acked && /usr/bin/python3 judge.py up/log acked'
equal "and the lower is what it was" "$(stat -c %s low/log)" 0
kill -KILL $NET
finish
