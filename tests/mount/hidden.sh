#!/bin/bash
# Marks, stage and index can be neither seen nor made through the mount, by root neither, in any format; the upper keeps its own.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

# Tries everything on $1 (a union with a deleted name, an opaque directory, copies); $2 is its upper.
attack() {
	python "$1" "$2" "$3" <<'EOF2'
import re

top, upper, format = sys.argv[1:]
refused = (errno.ENOENT, errno.EPERM)
# Names that belong to one format only are free in the others; `.cowfs` is always ours.
ours = {
    "overlay": [".cowfs"],
    "oci": [".cowfs", ".wh.x", ".wh.gone", ".wh..wh..opq", ".wh.", ".wh.."],
    "unionfs": [".cowfs", ".unionfs"],
    "unionfs-fuse": [".cowfs", ".unionfs-fuse"],
}[format]


before, listed = tree(upper, exact=True), sorted(os.listdir(top))
check(f"{format}: nothing private is listed", not [n for n in listed if n.startswith((".wh.", ".cowfs", ".unionfs"))], listed)
for name in ours:
    places = [name]
    if name == ".cowfs":
        places += [f"{name}/{n}" for n in (os.listdir(f"{upper}/{name}") if os.path.isdir(f"{upper}/{name}") else [])]
    if name.startswith(".unionfs"):
        places += [f"{name}/gone_HIDDEN~", f"{name}/new_HIDDEN~"]
    if name.startswith(".wh."):
        places += [f"dir/{name}"]
    for place in places:
        p = f"{top}/{place}"
        fails(f"{format}: stat {place}", errno.ENOENT, os.lstat, p)
        fails(f"{format}: open {place}", errno.ENOENT, os.open, p, os.O_RDONLY)
        fails(f"{format}: list {place}", errno.ENOENT, os.listdir, p)
        fails(f"{format}: create {place}", refused, os.open, p, os.O_CREAT | os.O_WRONLY)
        fails(f"{format}: mkdir {place}", refused, os.mkdir, p)
        fails(f"{format}: mknod {place}", refused, os.mkfifo, p)
        fails(f"{format}: symlink {place}", refused, os.symlink, "x", p)
        fails(f"{format}: link to {place}", refused, os.link, f"{top}/kept", p)
        fails(f"{format}: link from {place}", refused, os.link, p, f"{top}/link")
        fails(f"{format}: rename to {place}", refused, os.rename, f"{top}/kept", p)
        fails(f"{format}: rename a directory to {place}", refused, os.rename, f"{top}/opaque", p)
        fails(f"{format}: rename from {place}", refused, os.rename, p, f"{top}/stolen")
        fails(f"{format}: exchange with {place}", refused, renameat2, f"{top}/kept", p, RENAME_EXCHANGE)
        fails(f"{format}: unlink {place}", refused, os.unlink, p)
        fails(f"{format}: rmdir {place}", refused, os.rmdir, p)
        fails(f"{format}: chmod {place}", refused, os.chmod, p, 0o777)
        fails(f"{format}: truncate {place}", refused, os.truncate, p, 0)
        fails(f"{format}: setxattr {place}", refused, os.setxattr, p, "user.a", b"b")
# What looks like a whiteout is a device that can be seen, and the branch holds none.
os.mknod(f"{top}/made", stat.S_IFCHR | 0o600, os.makedev(0, 0))
made = os.lstat(f"{top}/made")
equal(f"{format}: a device 0:0 is a device", (stat.S_ISCHR(made.st_mode), made.st_rdev, "made" in os.listdir(top)), (True, 0, True))
equal(f"{format}: it is no whiteout in the branch", os.lstat(f"{upper}/made").st_rdev, os.makedev(0, 255))
os.unlink(f"{top}/made")
fails(f"{format}: its stand-in", errno.EPERM, os.mknod, f"{top}/made", stat.S_IFCHR | 0o600, os.makedev(0, 255))
fails(f"{format}: a whiteout over a lower name", errno.EEXIST, os.mknod, f"{top}/kept", stat.S_IFCHR, os.makedev(0, 0))
fails(f"{format}: a whiteout by rename", (errno.EPERM, errno.EINVAL), renameat2, f"{top}/kept", f"{top}/moved", RENAME_WHITEOUT)
for space in ("trusted", "user"):
    for mark in ("opaque", "redirect", "metacopy", "origin", "whiteout", "nlink", "impure", "xyz"):
        for place in ("kept", "copied", "opaque", "dir"):
            name = f"{space}.overlay.{mark}"
            p = f"{top}/{place}"
            if space == "trusted":
                fails(f"{format}: set {name} on {place}", (errno.EPERM, errno.EOPNOTSUPP), os.setxattr, p, name, b"y")
            else:
                # As in the kernel, the marks' other name space is plain data; it must not become a mark.
                attempt(os.setxattr, p, name, b"y")
                if attempt(os.getxattr, p, name) == 0:
                    attempt(os.removexattr, p, name)
                    continue
            fails(f"{format}: get {name} of {place}", (errno.ENODATA, errno.EPERM, errno.EOPNOTSUPP), os.getxattr, p, name)
            fails(f"{format}: remove {name} of {place}", (errno.ENODATA, errno.EPERM, errno.EOPNOTSUPP), os.removexattr, p, name)
for place in ("kept", "copied", "opaque", "dir", "moved-dir"):
    seen = [n for n in os.listxattr(f"{top}/{place}") if ".overlay." in n or "cowfs" in n]
    equal(f"{format}: no mark is listed on {place}", seen, [])
for name in ("trusted.cowfs.origin", "trusted.cowfs.x", "user.cowfs.x"):
    if attempt(os.setxattr, f"{top}/copied", name, b"forged") == 0:
        os.removexattr(f"{top}/copied", name)
fails(f"{format}: the deleted name stays deleted", errno.ENOENT, os.lstat, f"{top}/gone")
equal(f"{format}: the listing is the same", sorted(os.listdir(top)), listed)


def plain(lines):
    """Without what a refused call may move: times, and copies of the four names whose attributes were tried."""
    tried = ("b'/kept'", "b'/dir'", "b'/copied'", "b'/opaque'", "b'.'", "b'/.cowfs")
    return [re.sub(r" [ca]-?\d+", "", line) for line in lines if not line.startswith(tried)]


equal(f"{format}: the upper is unchanged", plain(tree(upper, exact=True)), plain(before))
EOF2
}

for format in overlay oci unionfs unionfs-fuse; do
	mkdir "l-$format" "u-$format"
	(
		cd "l-$format" && mkdir dir opaque moving && echo k >kept && echo g >gone && echo c >copied && echo o >opaque/old && echo d >dir/d && echo m >moving/m
	)
	top=mnt-$format
	mkdir "$top"
	check "$format: mounts" union -o "cow,whiteout=$format" "l-$format=RO:u-$format=RW" "$T/$top"
	rm "$top/gone" && rm -r "$top/opaque" && mkdir "$top/opaque" && echo n >"$top/opaque/new" && echo + >>"$top/copied"
	mv "$top/moving" "$top/moved-dir" 2>/dev/null || cp -a "$top/moving" "$top/moved-dir"
	rm "$top/dir/d"
	attack "$top" "u-$format" "$format"
	check "$format: unmounts" unmount "$T/$top"
	check "$format: mounts again" union -o "cow" "l-$format=RO:u-$format=RW" "$T/$top"
	equal "$format: shows what it should" "$(ls -A "$top" "$top/opaque" "$top/dir" | tr '\n' ' ')" \
		"$(printf '%s ' "$top:" copied dir kept moved-dir $([ -e "$top/moving" ] && echo moving) opaque '' "$top/dir:" '' "$top/opaque:" new)"
	check "$format: unmounts" unmount "$T/$top"
done
finish
