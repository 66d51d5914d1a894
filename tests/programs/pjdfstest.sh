#!/bin/bash
# pjdfstest 0.2.2: no case fails on a cowfs mount that passes on the filesystem below it in the same run.
# timeout: 420
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
ACCEPTED=$TEST_DIR/programs/pjdfstest.accepted

install_suite() { HOME=/root PATH=$PATH:/root/.cargo/bin:/usr/local/cargo/bin nice cargo install --root "$1" pjdfstest@0.2.2; }

need setfacl=acl
cached pjdfstest-0.2.2 install_suite
SUITE=$CACHE/pjdfstest-0.2.2/bin/pjdfstest

# Two ordinary users, in this test's namespace only; mount(8) finds cowfs when a case remounts.
cp /etc/passwd /etc/group .test/
for user in 1 2; do
	echo "pjd$user:x:4711$user:4711$user::/nonexistent:/bin/sh" >>.test/passwd
	echo "pjd$user:x:4711$user:" >>.test/group
done
mount --bind .test/passwd /etc/passwd && mount --bind .test/group /etc/group
mkdir .test/bin && cp .test/cowfs .test/bin && mount --bind .test/bin /usr/local/bin

cat >pjdfstest.toml <<'TOML'
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = true
[dummy_auth]
entries = [["pjd1", "pjd1"], ["pjd2", "pjd2"]]
TOML
mkdir secondary && mount -t tmpfs none secondary

# run DIR NAME: the suite in DIR; NAME.results gets "CASE ok|FAILED|skipped" lines, sorted.
run() {
	(cd "$1" && timeout -k 5 150 "$SUITE" -c "$T/pjdfstest.toml" -p . -s "$T/secondary") >"$2.log" 2>&1
	sed -nE 's/^([a-z_0-9:]+) +(ok|FAILED|skipped)$/\1 \2/p' "$2.log" | sort >"$2.results"
	grep '^Summary' "$2.log" | sed "s/^/# $2: /"
}

check "an ext4 of its own, for both runs" loop_fs ext4 2G disk
mkdir disk/lower disk/upper disk/native mnt
run disk/native native
check "the suite ran all its cases natively" [ "$(wc -l <native.results)" = 398 ]
check "no case was skipped natively" [ "$(grep -c skipped native.results)" = 0 ]
check "most cases pass natively" [ "$(grep -c ' ok$' native.results)" -ge 394 ]

check "cowfs mounts" union -o cow,allow_other,default_permissions,dev,suid "$T/disk/lower=RO:$T/disk/upper=RW" "$T/mnt"
run mnt cowfs
check "cowfs still serves after the suite" timeout 10 ls mnt
equal "the suite ran all its cases on cowfs" "$(wc -l <cowfs.results)" 398

# Each case once: the natively passed must pass, or stand in the list; what stands in the list must still fail.
while read -r name result; do
	[ "$(grep -c "^$name ok$" native.results)" = 1 ] || continue
	reason=$(sed -n "s/^$name //p" "$ACCEPTED")
	if [ "$result" = ok ]; then
		[ -z "$reason" ] || fail "$name passes now: take it from pjdfstest.accepted"
	elif [ -n "$reason" ]; then
		echo "# accepted: $name: $reason"
	else
		fail "$name passes natively, but on cowfs: $result: $(grep -aA1 "^$name " cowfs.log | tail -n 1 | cut -c1-300)"
	fi
done <cowfs.results
pass "compared $(wc -l <cowfs.results) cases"

check "cowfs unmounts" unmount mnt
check "no daemon left" no_daemon_left
check "nothing of the suite is left in the lower" rmdir disk/lower
finish
