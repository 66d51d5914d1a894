#!/bin/bash
# The short form of scripts/conformance: what pjdfstest, fsx and stress-ng find right natively, they find right on cowfs.
# timeout: 420
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"

need setfacl=acl stress-ng=stress-ng
export PATH=$PATH:/root/.cargo/bin:/usr/local/cargo/bin HOME=/root COWFS_TEST_CACHE=$CACHE
nice "$TEST_DIR/../scripts/conformance" --short --json --dir "$T" >results.json 2>messages
equal "cowfs fails nothing that passes natively" $? 0
grep -v '^ *[0-9]* s ' messages

python results.json <<'EOF'
import json

found = json.load(open(sys.argv[1]))
for suite, case, said in found["cowfs fails"]:
    check(f"{suite}: {case}", False, said)
for suite, case, _, reason in found["accepted"]:
    print(f"# accepted: {suite}: {case}: {reason}")
# A suite that did not run, or not where it should, finds nothing wrong either.
for suite, least in (("pjdfstest", 394), ("fsx", 4), ("stress-ng", 23)):
    native, cowfs = (found["suites"][suite][key] for key in ("native", "cowfs"))
    check(f"{suite}: most passes natively", [result for result, _ in native.values()].count("ok") >= least)
    equal(f"{suite}: the same cases on cowfs", sorted(cowfs), sorted(native))
check("no case of pjdfstest is skipped natively", "skipped" not in [result for result, _ in found["suites"]["pjdfstest"]["native"].values()])
EOF

# What the one skipped case is about: a file takes as many links as its filesystem has, then link(2) is EMLINK.
check "an ext4 of its own" loop_fs ext4 1G disk
mkdir disk/lower disk/upper mnt && echo content >disk/lower/file
check "cowfs mounts" union -o allow_other "$T/disk/lower=RO:$T/disk/upper=RW" "$T/mnt"
python mnt <<'EOF'
os.chdir(sys.argv[1])
os.mkdir("links")
for count in range(1, 70_000):
    if attempt(os.link, "file", f"links/{count}") != 0:
        break
equal("a file of ext4 has 65,000 names", (count, os.stat("file").st_nlink), (65_000, 65_000))
fails("one more", errno.EMLINK, os.link, "file", "more")
os.unlink("links/7")
os.link("file", "more")
equal("as many again", os.stat("more").st_nlink, 65_000)
EOF
check "cowfs unmounts" unmount mnt
finish
