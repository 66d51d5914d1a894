#!/bin/bash
# Every name a lower has can be deleted, made again and renamed away, in every format, also one too long for its mark; and
# names that are marks can be neither seen nor made through the mount.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/formats/peers.bash"
need getfattr=attr unionfs-fuse=unionfs-fuse fuse-overlayfs=fuse-overlayfs

# names.py ACTION: on the lower or the mount in $1; names at every limit that a mark can run into.
cat >names.py <<'PY'
import os, sys
names = [bytes([b]) * n for n in (1, 241, 242, 243, 246, 247, 248, 249, 250, 251, 252, 253, 254, 255) for b in b"xy"]
names += [b"a_HIDDEN~", b"_HIDDEN~", b"_HIDDEN~_HIDDEN~", b"wh.", b".wh", b"\xff\xfe\n", b"new\nline", b" ", b"~", b"...", b"a=RO:b", b"-rf", b"*"]
names += ["\u00e4".encode() * 127, b".cowfs-long." + b"0" * 64, b"#x", b"%41", b"\\", b"'\""]
what, root = sys.argv[1], os.fsencode(sys.argv[2])
dirs = [n for n in names[1::2] if n] + [b"d"]
files = [n for n in names[0::2] if n]
def at(*parts): return os.path.join(root, *parts)
if what == "make":
    for base in (b"", b"in"):
        os.makedirs(at(base), exist_ok=True)
        for n in files: open(at(base, n), "w").close()
        for n in dirs:
            os.mkdir(at(base, n)); open(at(base, n, b"below"), "w").close()
elif what == "delete":
    for base in (b"", b"in"):
        for n in files: os.unlink(at(base, n))
        for n in dirs:
            os.unlink(at(base, n, b"below")); os.rmdir(at(base, n))
elif what == "gone":
    for base in (b"", b"in"):
        left = [n for n in os.listdir(at(base)) if n != b"in"]
        assert not left, left
        for n in files + dirs: assert not os.path.lexists(at(base, n)), n
elif what == "again":
    for base in (b"", b"in"):
        for n in dirs:
            os.mkdir(at(base, n)); assert os.listdir(at(base, n)) == [], n
        for n in files: open(at(base, n), "x").close()
elif what == "empty":
    for base in (b"", b"in"):
        assert sorted(os.listdir(at(base))) == sorted(files + dirs + ([b"in"] if base == b"" else [])), base
        for n in dirs: assert os.listdir(at(base, n)) == [], n
elif what == "rename":
    # Away and back, and onto each other: the old name shows nothing, the new one the file.
    for n in files:
        os.rename(at(b"in", n), at(b"moved")); assert not os.path.lexists(at(b"in", n)), n
        os.rename(at(b"moved"), at(b"in", n))
    for a, b in zip(files[::2], files[1::2]):
        os.rename(at(a), at(b)); assert not os.path.lexists(at(a)), a
elif what == "renamed":
    for n in files: assert os.path.lexists(at(b"in", n)), n
    for a, b in zip(files[::2], files[1::2]):
        assert not os.path.lexists(at(a)), a
        assert os.path.lexists(at(b)), b
    assert set(files[1::2]) <= set(os.listdir(root)) and not set(files[::2][:len(files[1::2])]) & set(os.listdir(root))
elif what == "forge":
    import errno
    bad = [b".wh.x", b".wh.", b".wh..wh..opq", b".unionfs", b".unionfs-fuse", b".cowfs"]
    tries = {
        "create": lambda p: os.open(p, os.O_CREAT | os.O_WRONLY), "mkdir": os.mkdir, "mkfifo": os.mkfifo,
        "symlink": lambda p: os.symlink("x", p), "link": lambda p: os.link(at(b"in", files[0]), p),
        "rename": lambda p: os.rename(at(b"in", files[0]), p), "stat": os.lstat, "unlink": os.unlink, "rmdir": os.rmdir,
        "listdir": os.listdir, "exchange": None,
    }
    for n in bad:
        for name, attempt in tries.items():
            if attempt is None: continue
            try:
                attempt(at(n))
            except OSError as e:
                expected = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOENT)
                assert e.errno in expected, (name, n, e)
                assert name not in ("stat", "unlink", "rmdir", "listdir") or e.errno == errno.ENOENT, (name, n, e)
            else:
                raise AssertionError(f"{name} {n} works")
    for key in ("trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.whiteout", "trusted.cowfs.x"):
        for target in (at(b"in"), at(b"in", files[0])):
            try:
                os.setxattr(target, key, b"y")
            except OSError as e:
                assert e.errno in (errno.EPERM, errno.EACCES, errno.ENOTSUP), (key, e)
            else:
                # Escaped is allowed too: then it is data, and shows again.
                assert os.getxattr(target, key) == b"y", key
    assert all(b".wh." not in n and b".unionfs" not in n for n in os.listdir(root))
PY
names() { timeout 60 /usr/bin/python3 "$T/names.py" "$@"; }

for format in overlay oci unionfs unionfs-fuse; do
	fresh "$format"
	names make lower
	tree lower exact >lower.before
	check "cowfs mounts ($format)" cowfs_mount "whiteout=$format" || continue
	check "no mark can be made or reached ($format)" names forge mnt
	check "every name can be deleted ($format)" names delete mnt
	check "and is gone at once ($format)" names gone mnt
	unmount mnt
	no_daemon_left
	check "cowfs mounts again ($format)" cowfs_mount || continue
	check "and is gone after a remount ($format)" names gone mnt
	check "every name can be made again ($format)" names again mnt
	unmount mnt
	no_daemon_left
	check "cowfs mounts a third time ($format)" cowfs_mount || continue
	check "and holds nothing of what was there ($format)" names empty mnt
	check "and can be deleted again, all of it ($format)" find mnt -mindepth 1 -delete
	unmount mnt
	no_daemon_left
	check "cowfs mounts a fourth time ($format)" cowfs_mount || continue
	equal "nothing is left ($format)" "$(ls -A mnt)" ""
	unmount mnt
	no_daemon_left

	mkdir upper2
	check "cowfs mounts to rename ($format)" union -o "cow,allow_other,whiteout=$format" upper2=RW:lower=RO mnt || continue
	check "every name can be renamed ($format)" names rename mnt
	check "as it shows at once ($format)" names renamed mnt
	unmount mnt
	no_daemon_left
	check "cowfs mounts after it ($format)" union -o cow,allow_other upper2=RW:lower=RO mnt || continue
	check "as it shows after a remount ($format)" names renamed mnt
	unmount mnt
	no_daemon_left
	tree lower exact >lower.after
	same "the lower is as it was ($format)" lower.before lower.after
done
finish
