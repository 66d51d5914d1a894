# What the tests of the hosting recipe share. Sourced after lib.sh and cache.bash.

make_uwsgi_root() {
	cp -a "$CACHE/bookworm/." "$1" && cp /etc/resolv.conf "$1/etc/resolv.conf" &&
		chroot "$1" env DEBIAN_FRONTEND=noninteractive apt-get -q update &&
		chroot "$1" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends uwsgi-core uwsgi-plugin-python3 &&
		chroot "$1" apt-get clean
}

# A root of this test's own, so that /ns and /ufs are nowhere else: every entry of the machine's root, bound.
own_root() {
	local entry root=$T/.test/root
	mkdir "$root" && mount -t tmpfs -o mode=755 none "$root" || return 1
	for entry in /* /.[!.]*; do
		if [ -L "$entry" ]; then
			cp -a "$entry" "$root/"
		elif [ -d "$entry" ]; then
			mkdir "$root$entry" && mount --rbind "$entry" "$root$entry" || return 1
		fi
	done
	mkdir "$root/ns" "$root/ufs" "$root/.old"
	cd "$root" && pivot_root . .old && cd "$T" && umount -l /.old && rmdir /.old
}

# hosting: what the recipe needs is installed, and $CACHE/uwsgi-root is a root for customers.
hosting() {
	need uwsgi=uwsgi-core curl=curl getfattr=attr debootstrap=debootstrap
	[ -e /usr/lib/uwsgi/plugins/python3_plugin.so ] || apt_install uwsgi-plugin-python3
	debian_root
	cached uwsgi-root make_uwsgi_root
}
