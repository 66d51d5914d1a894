#!/bin/bash
# An image of 500 layers, the most that podman makes, named relative to the working directory, on a machine that allows 1024 open
# files: it mounts, shows the sum, is changed, and has descriptors left for many open files and deep trees.
# timeout: 240
. "$(dirname "$0")/../lib.sh"
LAYERS=500

mkdir -p store/l upper work ufs
list=
for ((n = 1; n <= LAYERS; n++)); do
	mkdir -p "store/$n/diff/common/in.$((n % 50))"
	echo "$n" | tee "store/$n/diff/all" "store/$n/diff/file.$n" >"store/$n/diff/common/in.$((n % 50))/of.$n"
	# Each deletes what the one before has made, but for the first hundred.
	[ "$n" -le 100 ] || mknod "store/$n/diff/file.$((n - 1))" c 0 0
	ln -s "../$n/diff" "store/l/L$n"
	list=l/L$n${list:+:}$list
done
(cd store && check "mounts" prlimit --nofile=1024:1024 timeout 60 "$COWFS" -o "lowerdir=$list,upperdir=$T/upper,workdir=$T/work,," "$T/ufs")
equal "the topmost counts" "$(cat ufs/all)" $LAYERS
equal "all but the deleted are there" "$(ls ufs | wc -l)" 102
equal "a merged tree" "$(find ufs/common -type f | wc -l)" $LAYERS
equal "has the right contents" "$(find ufs/common -type f -exec cat {} + | sort -n | awk '{ s += $1 } END { print s }')" $((LAYERS * (LAYERS + 1) / 2))
python <<'PY'
from lib import *
files = [open(f"ufs/common/in.{n % 50}/of.{n}") for n in range(1, 201)]
equal("200 files open at once", [int(file.read()) for file in files], list(range(1, 201)))
for file in files:
    file.close()
made = [open(f"ufs/common/in.{n}/made", "w") for n in range(50)]
for file in made:
    file.write("made")
    file.close()
equal("and changes everywhere", sum(len(os.listdir(f"upper/common/in.{n}")) for n in range(50)), 50)
PY
check "deleted as a whole" find ufs -mindepth 1 -delete
equal "nothing is left" "$(ls -A ufs)" ""
check "unmounts" unmount ufs
check "no daemon is left" no_daemon_left
equal "the work directory is empty" "$(find work -mindepth 1 -type f)" ""
finish
