# podman and buildah with cowfs as their mount program, on a storage of the test's own. Sourced after lib.sh and cache.bash.
#
#   engine DIR [USER]   from here on `podman_` and `buildah_` keep all they have in DIR; with USER, they are run by $TEST_USER

need podman=podman buildah=buildah crun=crun busybox=busybox-static newuidmap=uidmap getfattr=attr

# containers.conf for machines without systemd, with hybrid cgroups, low limits and no network.
containers_conf() {
	cat <<'CONF'
[containers]
cgroups = "disabled"
netns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
CONF
}

engine() {
	STORE=$1 ENGINE_USER=${2-}
	mkdir -p "$STORE/etc" "$STORE/graph" "$STORE/run" "$STORE/xdg" || return 1
	cat >"$STORE/etc/storage.conf" <<CONF
[storage]
driver = "overlay"
graphroot = "$STORE/graph"
runroot = "$STORE/run"
rootless_storage_path = "$STORE/graph"
[storage.options.overlay]
mount_program = "${MOUNT_PROGRAM-$COWFS}"
# As distributions ship it.
mountopt = "nodev,metacopy=on"
CONF
	[ -z "${FORCE_MASK-}" ] || echo "force_mask = \"$FORCE_MASK\"" >>"$STORE/etc/storage.conf"
	containers_conf >"$STORE/etc/containers.conf"
	mountpoint -q "$T/.test/cgroup" || { mkdir -p "$T/.test/cgroup" && mount -t cgroup2 none "$T/.test/cgroup"; }
	# Locks, and what crun and podman know of what runs: the machine's own are not touched.
	mountpoint -q "$T/.test/run" || {
		mkdir -p "$T/.test/run" && mount -t tmpfs -o mode=755 none "$T/.test/run" && mount --bind "$T/.test/run" /run &&
			mount -t tmpfs -o mode=1777 none /dev/shm
	} || return 1
	# crun refuses the mix of the two kinds of cgroups.
	[ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] || mount --bind "$T/.test/cgroup" /sys/fs/cgroup
	[ -z "$ENGINE_USER" ] || chown -R "$TEST_UID:$TEST_UID" "$STORE"
}

# A user whom podman can give further ids to.
make_rootless_user() {
	local file
	make_user && echo "$TEST_USER:200000:65536" >"$T/.test/subid" || return 1
	sed -i "/^$TEST_USER:/s|/nonexistent|$T/home|" "$T/.test/passwd"
	for file in /etc/subuid /etc/subgid; do
		[ -e "$file" ] || touch "$file"
		mount --bind "$T/.test/subid" "$file" || return 1
	done
	mkdir "$T/home" && chown "$TEST_UID:$TEST_UID" "$T/home"
}

in_engine() {
	local as=()
	[ -z "$ENGINE_USER" ] || as=(as_user)
	(cd "$STORE" && "${as[@]}" timeout -k 5 "${ENGINE_LIMIT:-60}" env HOME="$STORE" XDG_RUNTIME_DIR="$STORE/xdg" \
		CONTAINERS_STORAGE_CONF="$STORE/etc/storage.conf" CONTAINERS_CONF="$STORE/etc/containers.conf" "$@")
}
podman_() { in_engine podman --log-level error "$@"; }
buildah_() { in_engine buildah --log-level error "$@"; }

# remove CONTAINER: podman's own clearing up after it may still be under way, and be in the way.
remove() {
	podman_ rm -f "$1" && return
	sleep 1
	podman_ rm -f "$1"
}

# run OPTION... IMAGE COMMAND...
run() { podman_ run --rm "$@"; }

# make_rootfs DIR: busybox, and something to change.
make_rootfs() {
	local name
	mkdir -p "$1"/{bin,etc,proc,sys,dev,run,tmp,data/dir/sub,data/tree/deep,data/swap} || return 1
	install -m 755 "$(command -v busybox)" "$1/bin/busybox"
	for name in sh ls cat touch rm rmdir mkdir stat mv ln id chown chmod echo find test sleep cp head tail sync; do
		ln -s busybox "$1/bin/$name"
	done
	echo 'root:x:0:0::/:/bin/sh' >"$1/etc/passwd"
	for name in kept appended gone chmodded dir/a dir/sub/b tree/one tree/deep/two swap/old; do echo "base $name" >"$1/data/$name"; done
	ln "$1/data/kept" "$1/data/tree/kept-too"
	echo 'base links' >"$1/data/link-a" && ln "$1/data/link-a" "$1/data/link-b"
	chmod 640 "$1/data/chmodded"
	head -c 200000 /dev/urandom >"$1/data/big"
	chmod 1777 "$1/tmp"
}

# import_base DIR: the image `base` of that tree, all of it root's. import_as NAME DIR: with its owners.
import_base() { tar -C "$1" --numeric-owner --owner=0 --group=0 -cf "$STORE/base.tar" . && podman_ import -q "$STORE/base.tar" base; }
import_as() { tar -C "$2" --numeric-owner -cf "$STORE/$1.tar" . && podman_ import -q "$STORE/$1.tar" "$1" && rm "$STORE/$1.tar"; }

# layers IMAGE: for each layer of the image, lowest first, one line a member, and `--` after it. Times and sizes are left out.
layers() {
	rm -rf "$STORE/saved.tar"
	podman_ save -q --format oci-archive -o "$STORE/saved.tar" "$1" >/dev/null || return 1
	/usr/bin/python3 - "$STORE/saved.tar" <<'PY'
import io, json, sys, tarfile
archive = tarfile.open(sys.argv[1])
blob = lambda digest: archive.extractfile("blobs/" + digest.replace(":", "/")).read()
index = json.loads(archive.extractfile("index.json").read())
manifest = json.loads(blob(index["manifests"][0]["digest"]))
for layer in manifest["layers"]:
    members = []
    for m in tarfile.open(fileobj=io.BytesIO(blob(layer["digest"]))):
        marks = sorted(key for key in m.pax_headers if key.startswith("SCHILY.xattr") or key.startswith("LIBARCHIVE"))
        link = f" -> {m.linkname.removeprefix('./')}" if m.linkname else ""
        members.append(f"{m.name.removeprefix('./')} {m.type.decode()} {m.mode & 0o7777:o} {m.uid}:{m.gid}{link} {' '.join(marks)}".rstrip())
    print("\n".join(sorted(members)) + "\n--")
PY
}

# top_layer IMAGE: of these the last, without what the engine itself puts into every container.
top_layer() {
	layers "$1" | awk '/^--$/ { last = this; this = ""; next } { this = this $0 "\n" } END { printf "%s", last }' |
		grep -vE '^(\.|etc|dev|proc|sys|run|run/\.containerenv|etc/(hosts|hostname|mtab|resolv\.conf|passwd)) '
}

# The file systems of an engine that are mounted.
engine_mounts() { awk -v dir="$STORE/" 'index($5, dir) == 1 && / - fuse/ { print $5 }' /proc/self/mountinfo; }

# layer_dirs: where the layers of all images and containers are.
layer_dirs() { ls -d "$STORE"/graph/overlay/*/diff; }

# lowers_digest DIRS: everything about these layers.
lowers_digest() {
	local layer
	for layer in $1; do
		tree "$layer"
	done
}
