# What is slow to get and the same each time: kept in /var/cache/cowfs-tests, made once. Sourced after lib.sh.

CACHE=${COWFS_TEST_CACHE:-/var/cache/cowfs-tests}

# apt_install PACKAGE...: quiet, patient when another apt-get runs.
apt_install() {
	local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
	"${apt[@]}" install --no-install-recommends "$@" >"$T/.test/apt.log" 2>&1 && return
	"${apt[@]}" update >"$T/.test/apt.log" 2>&1
	"${apt[@]}" install --no-install-recommends "$@" >"$T/.test/apt.log" 2>&1 || { tail -n 5 "$T/.test/apt.log"; return 1; }
}

# need PROGRAM=PACKAGE...: installs the Debian packages whose program is missing; without them the test fails.
need() {
	local pair missing=()
	for pair in "$@"; do
		command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	[ ${#missing[@]} = 0 ] && return
	apt_install "${missing[@]}" || { fail "packages that this test needs: ${missing[*]}"; finish; }
}

# cached NAME COMMAND...: $CACHE/NAME is there; else COMMAND NEW makes it in the directory NEW, which becomes it when whole.
cached() {
	local name=$1 new
	shift
	mkdir -p "$CACHE"
	(
		flock 8
		[ -e "$CACHE/$name" ] && exit 0
		new=$(mktemp -d "$CACHE/.new.XXXXXX") && chmod 755 "$new" || exit 1
		echo "# making $CACHE/$name"
		if "$@" "$new" >"$CACHE/$name.log" 2>&1; then
			mv -T "$new" "$CACHE/$name"
		else
			tail -n 20 "$CACHE/$name.log"
			rm -rf --one-file-system "$new"
			exit 1
		fi
	) 8>"$CACHE/.lock" 9>&- || { fail "$CACHE/$name cannot be made"; finish; }
}

# The mirror that this machine itself installs from.
mirror() {
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 2>/dev/null |
		head -n 1 | grep . || echo http://deb.debian.org/debian
}

make_debian() { debootstrap --variant=minbase bookworm "$1" "$(mirror)"; }

# debian_root: $CACHE/bookworm is a minimal Debian 12.
debian_root() {
	need debootstrap=debootstrap
	cached bookworm make_debian
}
