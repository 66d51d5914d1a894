"""The suites that scripts/conformance runs: how each is got, what it finds in the lower branch, what it says of a file system.

A suite's `run` gets a directory of the file system under test and returns {case: (result, why)}, the result one of `ok`,
`failed` and `skipped`. It knows nothing of unions or peers.
"""

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ground import Failed, run

HERE = Path(__file__).resolve().parent


def cargo_installed(cache, package, version):
    """The directory of programs of a published crate, installed into the cache once."""
    at = cache / f"{package}-{version}"
    if not at.exists():
        new = cache / f".new-{package}"
        shutil.rmtree(new, ignore_errors=True)
        run("cargo", "install", "--quiet", "--target-dir", new / "target", "--root", new, f"{package}@{version}", cwd="/")
        shutil.rmtree(new / "target")
        new.rename(at)
    return at / "bin"


def needed(program, package):
    """Installs a Debian package whose program is missing."""
    if not shutil.which(program):
        run("apt-get", "install", "-y", "-q", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends", package, check=False)
    if not shutil.which(program):
        raise Failed(f"{program} is not there: install {package}")


class Suite:
    """What all suites have: a name, the arguments of the run, a scratch directory that is not under test, and `note`, which
    tells the user what is going on."""

    def __init__(self, args, scratch):
        self.args, self.cache, self.scratch = args, args.cache, scratch / self.name
        self.scratch.mkdir()

    def get(self):
        """Installs what the suite needs."""

    def fill(self, lower):
        """Puts into the lower branch what the suite works on."""


class Pjdfstest(Suite):
    """System calls and their errors, 398 cases."""

    name, version = "pjdfstest", "0.2.2"

    CONFIGURATION = """
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = true
[dummy_auth]
entries = [["pjd1", "pjd1"], ["pjd2", "pjd2"]]
"""

    def get(self):
        needed("setfacl", "acl")
        self.program = cargo_installed(self.cache, self.name, self.version) / "pjdfstest"
        (self.scratch / "configuration").write_text(self.CONFIGURATION)
        # Two ordinary users, in this namespace only.
        for file, line in (("passwd", "{0}:x:{1}:{1}::/nonexistent:/bin/sh\n"), ("group", "{0}:x:{1}:\n")):
            users = "".join(line.format(f"pjd{n}", 47110 + n) for n in (1, 2))
            (self.scratch / file).write_text(Path("/etc", file).read_text() + users)
            run("mount", "--bind", self.scratch / file, f"/etc/{file}")
        self.secondary = self.scratch / "secondary"
        self.secondary.mkdir()
        run("mount", "-t", "tmpfs", "none", self.secondary)

    def run(self, root, execute):
        code, said = execute([self.program, "-c", self.scratch / "configuration", "-p", ".", "-s", self.secondary], root, 300)
        cases = {}
        lines = said.splitlines()
        for line, following in zip(lines, lines[1:] + [""]):
            if found := re.fullmatch(r"([a-z_0-9:]+) +(ok|FAILED|skipped)", line):
                why = "" if found[2] == "ok" else following.strip()
                cases[found[1]] = (found[2].lower(), why)
        if len(cases) != 398:
            cases["(all cases)"] = ("failed", f"{len(cases)} of 398 cases ran: {said.strip()[-300:]} ({code})")
        return cases


class Fsx(Suite):
    """Random operations on one file, each read checked."""

    name, version = "fsx", "0.3.2"

    PLAIN = {"close_open": 1, "read": 10, "write": 10, "truncate": 5, "fsync": 0.1, "fdatasync": 0.1, "mapread": 0, "mapwrite": 0}
    MAPS = {**PLAIN, "mapread": 10, "mapwrite": 10, "invalidate": 1}
    PROFILES = {
        "plain": PLAIN,
        "mmap": MAPS,
        "copies": {**MAPS, "sendfile": 10, "posix_fadvise": 5, "copy_file_range": 5},
        "allocation": {**PLAIN, "posix_fallocate": 5, "punch_hole": 5, "copy_file_range": 5},
    }

    def get(self):
        self.program = cargo_installed(self.cache, self.name, self.version) / "fsx"
        self.kinds = [(profile, seed) for profile in self.PROFILES for seed in range(1, self.args.seeds + 1)]
        for profile, weights in self.PROFILES.items():
            lines = [f"{operation} = {weight:.1f}\n" for operation, weight in weights.items()]
            (self.scratch / profile).write_text("[weights]\n" + "".join(lines))

    def fill(self, lower):
        for profile, seed in self.kinds:
            (lower / f"{profile}-{seed}").write_bytes(os.urandom(100_000))

    def run(self, root, execute):
        def one(kind):
            profile, seed = kind
            self.note(f"{profile}, seed {seed}")
            argv = [self.program, "-q", "-f", self.scratch / profile, "-S", seed, "-N", self.args.operations,
                    "-P", self.scratch, root / f"{profile}-{seed}"]
            # Natively a map is written back by the disk at each msync: slow.
            code, said = execute(argv, self.scratch, 120 + self.args.operations // 100)
            return ("ok", "") if code == 0 else ("failed", f"{said.strip()[-200:]} ({code})")

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return {f"{profile}, seed {seed}": result
                    for (profile, seed), result in zip(self.kinds, threads.map(one, self.kinds))}


class Stress(Suite):
    """stress-ng's stressors of filesystems, each verifying what it does."""

    name = "stress-ng"

    # Those with a meaning for any filesystem; first the ones of the short form.
    STRESSORS = ("chmod chown copy-file dentry dir dirdeep fallocate fcntl file-ioctl flock getdent hdd iomix link lockofd mknod mmap "
                 "rename seek symlink touch utime xattr "
                 "access aio aiol chdir dirmany dnotify dup fiemap filename fpunch fsize fstat handle inotify io lease locka lockf "
                 "mmapaddr msync open readahead revio sendfile splice sync-file tee").split()
    SHORT = 23

    def get(self):
        needed("stress-ng", "stress-ng")

    def run(self, root, execute):
        cases = {}
        at = root / "stress"
        at.mkdir()
        for stressor in self.STRESSORS[:self.SHORT] if self.args.short else self.STRESSORS:
            self.note(stressor)
            argv = ["stress-ng", f"--{stressor}", "2", "--timeout", f"{self.args.seconds}s", "--verify", "--temp-path", at]
            code, said = execute(argv, at, 60 + 5 * self.args.seconds)
            trouble = [line.split("] ", 1)[-1] for line in said.splitlines() if re.search(r"fail:|error:|skip|not impl", line)]
            why = "; ".join(trouble[:2])[:300] or said.strip()[-200:]
            # 3: lacks a resource; 4: not implemented here. Some say so and give 0.
            passed = code == 0 and "skipping stressor" not in said
            skipped = code in (0, 3, 4)
            cases[stressor] = ("ok", "") if passed else ("skipped" if skipped else "failed", f"{why} ({code})")
        return cases


class Programs(Suite):
    """Real programs in a Debian root: package manager, git, compilers, databases, archives."""

    name = "programs"

    def get(self):
        # Not in the lower itself: it is filled once a file system.
        self.debian = self.scratch / "debian"
        run("bash", HERE / "programs.sh", "prepare", self.debian, env={**os.environ, "COWFS_TEST_CACHE": str(self.cache)})

    def fill(self, lower):
        run("cp", "-a", self.debian, lower / "debian")

    def run(self, root, execute):
        results = self.scratch / "results"
        results.write_text("")
        env = {**os.environ, "COWFS_TEST_CACHE": str(self.cache)}
        code, said = execute(["bash", HERE / "programs.sh", "tell", root / "debian", results], self.scratch, 1800, env)
        cases = {}
        for line in results.read_text().splitlines():
            (result, _, name), why = line.partition("\t")[0].partition(" "), line.partition("\t")[2]
            cases[name] = (result, why)
        if code != 0:
            cases["(all stories)"] = ("failed", f"{said.strip()[-300:]} ({code})")
        return cases


SUITES = {suite.name: suite for suite in (Pjdfstest, Fsx, Stress, Programs)}
