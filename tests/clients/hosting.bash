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

# vassal N BRANCH OPTIONS PORT LINE: the Emperor's file for customer N over BRANCH, by the recipe of GUIDE.md; printed.
vassal() {
	cat <<INI
[uwsgi]
uid = u$1
gid = u$1
hook-pre-jail = mount:none none / rec,private
hook-pre-jail = callret:chdir /
hook-pre-jail = exec:cowfs -ocow,chroot=/ns,default_permissions,allow_other$3 $2=RO:/cow/%(uid)=RW /ufs
pivot_root = /ufs /ufs/.old_root
hook-as-root = mount:proc none /proc
hook-as-root = mount:none /.old_root/dev /dev bind
hook-as-root = umount:/.old_root rec,detach
mountpoint-check = /
master = true
plugins-dir = /usr/lib/uwsgi/plugins
plugins-dir = /ns/precise/usr/lib/uwsgi/plugins
plugins = python3
http-socket = 127.0.0.1:$4
wsgi-file = /srv/app.py
$5
INI
}
