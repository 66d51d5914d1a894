# A tree, and work on it through a union, the same on every kind of branch; beside it the same work on a plain copy. Sourced after lib.sh.

# make_tree DIR: what is in the lower.
make_tree() (
	mkdir -p "$1" && cd "$1" || exit 1
	mkdir -p dir/sub away/deep many swap
	for f in kept appended gone replaced dir/a dir/sub/b away/one away/deep/two swap/old; do echo "image $f" >"$f"; done
	for ((i = 0; i < 300; i++)); do head -c 2000 /dev/urandom >"many/$i"; done
	head -c 3000000 /dev/urandom >big
	printf '#!/bin/sh\necho ran "$@"\n' >program && chmod 755 program
)

# work DIR: the same changes as everywhere.
work() (
	cd "$1" || exit 1
	set -e
	echo more >>appended
	rm gone
	echo new >fresh; mv fresh replaced
	rm -r dir; mkdir dir; echo new >dir/new
	mv swap/old swap/new
	rm many/1?; echo x >many/0
	printf Y | dd of=big bs=1 seek=1500000 conv=notrunc status=none
	chmod 600 kept
	mkdir -p made/deep; echo made >made/deep/file; ln made/deep/file made/link
)

# names_and_data DIR
names_and_data() (cd "$1" && find . -mindepth 1 -printf '%y %m %p\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum)

# changed_rightly NAME DIR: it shows the image's tree after the same work on a plain copy.
changed_rightly() {
	names_and_data plain >plain.list
	names_and_data "$2" >union.list
	same "$1" plain.list union.list
}

# through_the_union NAME LOWER [UPPER]: mounts a union on it, works, mounts again.
through_the_union() {
	local name=$1 lower=$2 upper=${3:-upper-$1}
	mkdir -p "$upper" ufs
	check "$name: mounts" union -o cow,allow_other "$lower=RO:$upper=RW" ufs || return
	rm -rf plain && cp -a "$lower" plain
	names_and_data "$lower" >lower.list && names_and_data ufs >union.list
	same "$name: shows what is in it" lower.list union.list
	equal "$name: a program runs from it" "$(ufs/program a b)" "ran a b"
	work plain || fail "$name: the work on a plain copy"
	check "$name: is written to" work ufs
	changed_rightly "$name: shows the changes" ufs
	check "$name: a directory of it is renamed" mv ufs/away ufs/here && mv plain/away plain/here
	changed_rightly "$name: and so it is" ufs
	check "$name: unmounts" unmount ufs
	check "$name: mounts again" union -o cow,allow_other "$lower=RO:$upper=RW" ufs
	changed_rightly "$name: shows the same" ufs
	check "$name: can be deleted as a whole" find ufs -mindepth 1 -delete
	equal "$name: nothing is left" "$(ls -A ufs)" ""
	check "$name: unmounts again" unmount ufs
	names_and_data "$lower" >lower.after
	same "$name: the lower shows what it did" lower.list lower.after
	check "$name: no daemon is left" no_daemon_left
}
