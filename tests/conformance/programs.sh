#!/bin/bash
# Tells the stories of real programs in a Debian root, wherever it lies. Called by scripts/conformance, in its namespaces:
#   programs.sh prepare DIR         makes the root (fetched once into $CACHE)
#   programs.sh tell DIR RESULTS    one line a story in RESULTS: "ok NAME", or "failed NAME" and, after a tab, its last words
set -u
TEST_DIR=$(cd "$(dirname "$0")/.." && pwd)
T=$(mktemp -d "${TMPDIR:-/tmp}/cowfs-programs.XXXXXX") || exit 1
trap 'rm -rf "$T"' EXIT
mkdir "$T/.test"
fail() { echo "$*" >&2; }
finish() { exit 1; }
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/programs/debian.bash"

inside() {
	if in_debian "$ROOT" "$2" >"$T/said" 2>&1 </dev/null; then
		echo "ok $1"
	else
		printf 'failed %s\tstatus %s: %s\n' "$1" $? "$(tail -n 3 "$T/said" | tr '\t\n' '  ' | cut -c1-300)"
	fi >>"$RESULTS"
}

ROOT=$2
case $1 in
prepare)
	need sqlite3=sqlite3 setfattr=attr
	debian_root
	prepare_debian "$ROOT"
	;;
tell)
	RESULTS=$3
	enter_debian "$ROOT" || { echo "failed enter the root" >>"$RESULTS"; exit 1; }
	stories
	further_stories
	leave_debian "$ROOT"
	;;
esac
