#!/bin/bash
# The Debian package and `cargo install`: what they bring, that it works in a fresh Debian, and that removing leaves nothing.
# timeout: 600
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
SOURCE=$(cd "$TEST_DIR/.." && pwd)
export PATH=$PATH:${CARGO_HOME:-/root/.cargo}/bin:$CACHE/cargo-deb-root/bin

install_cargo_deb() { CARGO_TARGET_DIR=$T/.test/cargo-deb cargo install --locked --root "$CACHE/cargo-deb-root" cargo-deb; }
command -v cargo-deb >/dev/null || check "cargo-deb" install_cargo_deb || finish
need debootstrap=debootstrap dpkg-deb=dpkg zsh=zsh fish=fish
debian_root

# ---- the package -------------------------------------------------------------------------------------------------------

# In a copy, so that the checkout stays as it is.
mkdir source
(cd "$SOURCE" && cp -a --parents .cargo Cargo.toml Cargo.lock src man examples scripts README.md GUIDE.md CHANGELOG.md LICENSE-* clippy.toml "$T/source/")
check "scripts/package" env COWFS="$COWFS" bash -c 'cd source && scripts/package >../package.log 2>&1' || { tail -n 20 package.log; finish; }
DEB=$(readlink -e source/target/debian/cowfs_*.deb)
check "it is there" [ -f "$DEB" ]
dpkg-deb -c "$DEB" | awk '{ print $1, $2, $6, $7, $8 }' >contents
for entry in '-rwxr-xr-x 0/0 ./usr/bin/cowfs ' 'lrwxrwxrwx 0/0 ./usr/sbin/mount.cowfs -> ' \
	'lrwxrwxrwx 0/0 ./usr/sbin/mount.fuse.cowfs -> ' '-rw-r--r-- 0/0 ./usr/share/man/man8/cowfs.8.gz ' \
	'-rw-r--r-- 0/0 ./usr/share/man/man5/cowfs-formats.5.gz ' '-rw-r--r-- 0/0 ./usr/share/bash-completion/completions/cowfs ' \
	'-rw-r--r-- 0/0 ./usr/share/zsh/vendor-completions/_cowfs ' '-rw-r--r-- 0/0 ./usr/share/fish/vendor_completions.d/cowfs.fish ' \
	'-rw-r--r-- 0/0 ./usr/share/doc/cowfs/copyright ' '-rw-r--r-- 0/0 ./usr/share/doc/cowfs/LICENSE-APACHE ' \
	'-rw-r--r-- 0/0 ./usr/share/doc/cowfs/GUIDE.md ' '-rw-r--r-- 0/0 ./usr/share/doc/cowfs/examples/fstab ' \
	'-rw-r--r-- 0/0 ./usr/share/doc/cowfs/examples/systemd/srv-u1.mount '; do
	check "it brings ${entry##*0/0 ./}" grep -qF -- "$(sed 's/ *$//' <<<"$entry")" contents
done

# ---- in a fresh Debian -------------------------------------------------------------------------------------------------

cp -a "$CACHE/bookworm" fresh
mount -t proc proc fresh/proc && mount --bind /dev fresh/dev
inside() { chroot fresh env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
listing() { (cd fresh && find . -xdev \( -path ./proc -o -path ./dev -o -path ./var/lib/dpkg -o -path ./var/log -o -path ./var/cache \) -prune -o -printf '%p %y %m %U:%G %s %l\n' | grep -vE '^\./root |^\. ' | sort); }
listing >before
cp "$DEB" fresh/root/
rm -f guide.block
awk '/^```sh package$/ { on = 1; next } /^```/ { on = 0 } on' "$SOURCE/GUIDE.md" >fresh/root/guide.sh
check "the guide has the commands" grep -q 'dpkg -i' fresh/root/guide.sh
check "the guide's commands install it" inside sh -ec 'cd /root && . ./guide.sh'
check "no file is the package's and somebody else's" inside dpkg --verify cowfs
check "mount -t cowfs" inside sh -ec 'mkdir -p /srv/l /srv/u /srv/m && echo l >/srv/l/f && mount -t cowfs -o cow,allow_other /srv/l=RO:/srv/u=RW /srv/m && echo more >>/srv/m/f && cat /srv/u/f && umount /srv/m'
check "mount -t fuse.cowfs, without the package fuse3" inside sh -ec 'mount -t fuse.cowfs -o cow,allow_other /srv/l=RO:/srv/u=RW /srv/m && cat /srv/m/f && umount /srv/m'
check "the program needs no library" bash -c '! ldd fresh/usr/bin/cowfs 2>/dev/null | grep "=>"'
check "removed" inside dpkg -r cowfs
check "purged" inside dpkg -P cowfs
no_daemon_left
rm -rf fresh/srv/{l,u,m} fresh/root/cowfs_*.deb fresh/root/guide.sh
listing >after
same "nothing is left" before after
refuse "nor does mount(8) find it" 'unknown filesystem' inside mount -t cowfs a /mnt
umount fresh/proc fresh/dev

# ---- completions -------------------------------------------------------------------------------------------------------

C=source/target/package/completions
cat >bash.test <<B
. $C/cowfs.bash
compopt() { :; }
COMP_WORDS=(cowfs -o cow,lock) COMP_CWORD=2; _cowfs; echo "\${COMPREPLY[@]}"
COMP_WORDS=(cowfs -o redirect=) COMP_CWORD=2; _cowfs; echo "\${COMPREPLY[@]}"
COMP_WORDS=(cowfs -) COMP_CWORD=1; _cowfs; echo "\${COMPREPLY[@]}"
B
equal "bash completes" "$(bash bash.test | tr '\n' '|')" "cow,lock_wait=|redirect=on redirect=off|-o -f -d -s -N -h -V|"
check "zsh takes it" zsh -n $C/_cowfs
check "fish takes it" fish --no-config -n $C/cowfs.fish
equal "fish completes" "$(fish --no-config -c "source $C/cowfs.fish; complete -C 'cowfs -o cow,lock_w'" | head -n 1 | cut -f1)" "cow,lock_wait="
refuse "another shell" 'bash, zsh or fish' "$COWFS" --completions csh
for page in cowfs.8 cowfs-formats.5; do check "$page is well-formed" bash -c "! command -v groff >/dev/null || [ -z \"\$(groff -man -ww -z '$SOURCE/man/$page' 2>&1)\" ]"; done

# ---- cargo install -----------------------------------------------------------------------------------------------------

mkdir cargo-root
# What has been compiled already need not be compiled again.
target=${CARGO_TARGET_DIR:-$SOURCE/target}
check "cargo install --path ." bash -c "cd source && CARGO_TARGET_DIR=$target cargo install -q --locked --offline --path . --root $T/cargo-root"
check "it brings the program" bash -c '[ "$(ls cargo-root/bin)" = cowfs ] && cargo-root/bin/cowfs -V'
mkdir l u m
check "which mounts" bash -c "cargo-root/bin/cowfs -o cow $T/l=RO:$T/u=RW $T/m && umount $T/m"
no_daemon_left

# `cargo install cowfs`: what the registry would have, built outside of the tree, where .cargo/config.toml does not count. In a
# copy that is all of the checkout, since what is to be kept out must be there.
mkdir whole
(cd "$SOURCE" && find . -mindepth 1 -maxdepth 1 ! -name target ! -name .git -exec cp -a -t "$T/whole/" {} +)
package() { (cd whole && CARGO_TARGET_DIR=$T/.test/crate cargo package -q --offline --allow-dirty --no-verify) && ls .test/crate/package/cowfs-*.crate; }
check "cargo package" package || finish
mkdir crate && tar -xzf .test/crate/package/cowfs-*.crate --strip-components=1 -C crate
check "the crate is small" [ "$(stat -c %s .test/crate/package/cowfs-*.crate)" -lt 400000 ]
for file in README.md GUIDE.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE man/cowfs.8 man/cowfs-formats.5 examples/fstab examples/systemd/srv-u1.mount Cargo.lock; do
	check "the crate has $file" cmp "crate/$file" "$SOURCE/$file"
done
equal "and nothing but that and sources" "$(cd crate && find . -type f | grep -vE '^\./(src/.*\.rs|man/.*|examples/.*|docs/SEMANTICS\.md|[A-Z]+\.md|LICENSE-[A-Z]+|Cargo\..*|\.cargo/config\.toml|\.cargo_vcs_info\.json)$')" ""
if long "cargo install of the crate"; then
	rm -r crate/.cargo
	install_crate() { (cd / && CARGO_TARGET_DIR=$CACHE/crate-target cargo install -q --locked --offline --debug --path "$T/crate" --root "$T/crate-root"); }
	check "cargo install of the crate" install_crate
	mkdir -p ns/l ns/u && echo lower >ns/l/f
	equal "it works, from a root without libraries" \
		"$(crate-root/bin/cowfs -o "cow,chroot=$T/ns" /l=RO:/u=RW m && echo more >>m/f && mv m/f m/g && cat m/g ns/u/g && umount m)" $'lower\nmore\nlower\nmore'
	for i in {1..300}; do pgrep -f "cowfs.*$T/ns" >/dev/null || break; sleep 0.1; done
	equal "and ends" "$(pgrep -af "cowfs.*chroot=$T/ns")" ""
fi
finish
