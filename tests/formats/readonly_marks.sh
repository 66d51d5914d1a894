#!/bin/bash
# Marks in read-only branches: those of overlayfs and of unionfs-fuse count wherever they are, .wh. files where the branch
# is declared so; they hide what is in the branches below, and nothing in their own or above.
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/formats/peers.bash"
need getfattr=attr unionfs-fuse=unionfs-fuse fuse-overlayfs=fuse-overlayfs

# whiteouts FORMAT DIR: DIR hides `gone`, `dir/gone`, all old in `opaque` and the directory `gone-dir`.
whiteouts() {
	mkdir -p "$2/dir" "$2/opaque"
	touch "$2/opaque/middle"
	case $1 in
	overlay)
		mknod "$2/gone" c 0 0 && mknod "$2/dir/gone" c 0 0 && mknod "$2/gone-dir" c 0 0
		setfattr -n trusted.overlay.opaque -v y "$2/opaque" ;;
	xwhiteout)
		# The form that a tar can carry: an attribute on an empty file, in a directory that is marked for it.
		touch "$2/gone" "$2/dir/gone" "$2/gone-dir"
		setfattr -n trusted.overlay.whiteout -v y "$2/gone" && setfattr -n trusted.overlay.whiteout -v y "$2/dir/gone"
		setfattr -n trusted.overlay.whiteout -v y "$2/gone-dir"
		setfattr -n trusted.overlay.opaque -v x "$2" && setfattr -n trusted.overlay.opaque -v x "$2/dir"
		setfattr -n trusted.overlay.opaque -v y "$2/opaque" ;;
	wh) touch "$2/.wh.gone" "$2/dir/.wh.gone" "$2/.wh.gone-dir" "$2/opaque/.wh..wh..opq" ;;
	unionfs*)
		mkdir -p "$2/.$1/dir" && touch "$2/.$1/gone_HIDDEN~" "$2/.$1/dir/gone_HIDDEN~"
		mkdir "$2/.$1/gone-dir_HIDDEN~" "$2/.$1/opaque_HIDDEN~" ;;
	esac
}

stack() {
	fresh "$1"
	mkdir middle
	mkdir -p lower/{dir,opaque,gone-dir/sub}
	touch lower/{gone,stays,opaque/old,dir/gone,dir/stays,gone-dir/f,gone-dir/sub/g}
	whiteouts "$1" middle
	printf '%s\n' dir dir/stays opaque opaque/middle stays >want
}
names() { (cd mnt && find . -mindepth 1 | cut -c3- | sort); }

for kind in overlay xwhiteout wh unionfs unionfs-fuse; do
	# Branches as unionfs-fuse's users list them, `+wh` where .wh. files are marks; and under each format in the upper.
	declared=middle=RO
	[ $kind = wh ] && declared=middle=RO+wh
	for upper in overlay oci unionfs unionfs-fuse; do
		stack "$kind"
		tree middle >middle.before
		check "cowfs mounts over $kind marks in a read-only branch, upper $upper" \
			union -o "cow,allow_other,whiteout=$upper" "$declared:lower=RO:upper=RW" mnt || continue
		names >got
		same "$kind marks of a read-only branch count (upper $upper)" want got
		check "what they hide can be made anew ($kind, $upper)" bash -c 'echo new >mnt/gone && mkdir mnt/gone-dir && touch mnt/opaque/old'
		equal "a directory made there is empty ($kind, $upper)" "$(ls -A mnt/gone-dir)" ""
		check "and deleted ($kind, $upper)" bash -c 'rm mnt/gone && rmdir mnt/gone-dir && rm mnt/opaque/old'
		names >got
		same "after which they hide again ($kind, $upper)" want got
		check "what they leave can be deleted ($kind, $upper)" bash -c 'rm -r mnt/opaque mnt/stays && mkdir mnt/opaque'
		unmount mnt
		no_daemon_left
		check "cowfs mounts again ($kind, $upper)" union -o cow,allow_other "$declared:lower=RO:upper=RW" mnt || continue
		equal "all as before ($kind, $upper)" "$(names | tr '\n' ' ')" "dir dir/stays opaque "
		unmount mnt
		no_daemon_left
		tree middle >middle.after
		same "the read-only branch is as it was ($kind, $upper)" middle.before middle.after
	done
done

# As the engines call it, each layer may hold marks of either kind.
for kind in overlay wh; do
	stack "$kind"
	check "lowerdir= with $kind marks in a layer" union -o lowerdir=middle:lower,upperdir=upper,workdir=work mnt || continue
	names >got
	same "$kind marks of a layer count" want got
	unmount mnt
	no_daemon_left
	check "without an upper" union -o lowerdir=middle:lower mnt || continue
	names >got
	same "$kind marks of a layer count in a read-only union" want got
	refuse "which is read-only" "read-only" touch mnt/x
	unmount mnt
	no_daemon_left
done

# Not declared, `.wh.` files are files that nobody sees as marks.
stack wh
check "an undeclared read-only branch with .wh. files" union -o cow,allow_other middle=RO:lower=RO:upper=RW mnt &&
	equal "hides nothing" "$(cd mnt && ls -d gone stays dir/gone opaque/old)" "$(printf '%s\n' dir/gone gone opaque/old stays)"
unmount mnt

# A mark hides nothing in its own branch nor above it.
fresh above
mkdir top middle
touch top/x middle/x lower/x top/only-top
mkdir -p middle/.unionfs && touch middle/.unionfs/{x,only-top}_HIDDEN~
check "marks under an entry" union -o cow,allow_other top=RO:middle=RO:lower=RO:upper=RW mnt
equal "nothing above a mark is hidden" "$(ls -A mnt)" "$(printf '%s\n' only-top x)"
unmount mnt
no_daemon_left
check "marks beside an entry of their own branch" union -o cow,allow_other middle=RO:lower=RO:upper=RW mnt
equal "nor beside it" "$(ls -A mnt)" x
unmount mnt

# A branch that is opaque as a whole: nothing below it shows, as with fuse-overlayfs. In a branch that is not declared so, the file
# is a file; and the kernel makes nothing of the attribute on a root.
fresh opaque
mkdir over middle work2 upper2 lower/dir middle/dir
touch over/over middle/{new,dir/new} lower/{old,dir/old}
ln -s /nowhere lower/link
# shows NAME NAMES MOUNT-ARGUMENT...
shows() {
	local name=$1 wanted=$2 round of_lower
	shift 2
	of_lower=$(for n in dir/old link old; do [[ " $wanted" != *" $n "* ]] || echo $n; done)
	for round in "" ", after a remount"; do
		check "$name: mounts$round" union "$@" mnt || return
		equal "$name: asked for by name$round" "$(cd mnt && ls -d dir/old link old 2>/dev/null)" "$of_lower"
		equal "$name: listed$round" "$(names | tr '\n' ' ')" "$wanted"
		unmount mnt
		no_daemon_left
	done
}
ALL="dir dir/new dir/old link new old "
setfattr -n trusted.overlay.opaque -v y middle
shows "an attribute on a root" "$ALL" middle=RO+wh:lower=RO:upper=RW
shows "an attribute on a root, lowerdir=" "$ALL" -o lowerdir=middle:lower
touch middle/.wh..wh..opq
shows "not declared" "$ALL" middle=RO:lower=RO:upper=RW
shows "declared" "dir dir/new new " middle=RO+wh:lower=RO:upper=RW
shows "lowerdir=" "dir dir/new new " -o lowerdir=middle:lower
shows "lowerdir=, in between" "dir dir/new new over " -o lowerdir=over:middle:lower,upperdir=upper,workdir=work
check "what it hides is made anew" union -o lowerdir=over:middle:lower,upperdir=upper,workdir=work mnt
check "it can be" sh -c 'echo made >mnt/old && rm -r mnt/dir && mkdir mnt/dir && rm mnt/new'
unmount mnt
no_daemon_left
shows "what was made" "dir old over " -o lowerdir=over:middle:lower,upperdir=upper,workdir=work
touch upper2/.wh..wh..opq upper2/mine
shows "an upper" "mine " -o whiteout=oci,lowerdir=over:middle:lower,upperdir=upper2,workdir=work2
check "fuse-overlayfs mounts" fuse-overlayfs -o lowerdir=over:middle:lower mnt 2>/dev/null
equal "and shows the same" "$(names | tr '\n' ' ')" "dir dir/new new over "
unmount mnt

# Whole trees that the programs themselves have written, mounted as read-only branches.
LIST=
for peer in kernel unionfs-fuse fuse-overlayfs fuse-overlayfs-wh; do
	fresh "written-$peer"
	tree_py lower lower
	peer_mount "$peer" || continue
	tree_py change mnt
	unmount mnt
	settle_daemons
	peer_mount "$peer" && listing peer.tree
	unmount mnt
	settle_daemons
	mkdir fresh
	declared=upper=RO
	[ $peer = fuse-overlayfs-wh ] && declared=upper=RO+wh
	check "what $peer wrote, as a read-only branch" union -o cow,allow_other "$declared:lower=RO:fresh=RW" mnt || continue
	listing cowfs.tree
	same "shows the same tree ($peer)" peer.tree cowfs.tree
	unmount mnt
	no_daemon_left
done
finish
