#!/usr/bin/env python3
"""Trees for the format tests: make a lower, change a mount, list a tree, compare a union with its oracle.

  tree.py lower DIR                  fill DIR with the lower that every format test uses
  tree.py random-lower DIR SEED      fill DIR with a random small tree
  tree.py change DIR                 the fixed sequence of changes, through the mount DIR
  tree.py random DIR SEED N [ORACLE] N random operations on DIR; with ORACLE the same on that plain directory, errnos compared
  tree.py sequences-lower DIR SEED N the same in each of N directories, smaller
  tree.py sequences DIR SEED N M [ORACLE]
                                     M random operations in each of them, as `random`
  tree.py list DIR [--xattr] [--nlink] [--probe BRANCH]...
                                     canonical text of a tree; --probe: every name that BRANCH holds is also looked up by
                                     name, and must be found if and only if the listing shows it

What it owns: what "the same tree" means. A listing holds type, mode, owner, size, content, link target, device number
and the times of everything but directories; exit status 1 when readdir and lookup disagree.
"""
import errno
import hashlib
import os
import random
import shutil
import stat
import sys

TIME = 1_000_000_000


def put(root, path, text="", mode=0o644, owner=(0, 0)):
    """A regular file with its content, mode and owner."""
    full = os.path.join(root, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "w") as file:
        file.write(text)
    os.chown(full, *owner)
    os.chmod(full, mode)


def settle(root):
    """Fixed times for all of a tree, so that fixtures are the same each time they are made."""
    for base, dirs, files in os.walk(root, topdown=False):
        for name in files + dirs:
            os.utime(os.path.join(base, name), (TIME, TIME), follow_symlinks=False)
    os.utime(root, (TIME, TIME))


def make_lower(root):
    """The lower of all directed tests: one name for each thing that `change` does, and some that stay."""
    for name in ("plain", "gone-file", "dir/a", "dir/b", "dir/sub/c", "dir/sub/d", "gone-dir/x", "gone-dir/y/z",
                 "again/old", "again/keep", "again/sub/deep", "file2dir", "dir2file/p", "dir2file/q/r",
                 "onto-gone-file", "source-file", "onto-gone-dir/k", "onto-gone-dir/s/t", "append", "truncate",
                 "overwrite", "chmod", "chown", "nested/1/2/3/one", "nested/1/2/3/two", "nested/1/2/4/three",
                 "again-file", "rename-me", "moved-dir/f", "moved-dir/g/h", "cur/old-only", "cur/both",
                 "kept/e", "kept/f/g", "link2file", "twice/x", "emptied/only"):
        put(root, name, f"lower {name}\n")
    put(root, "suid", "#!/bin/true\n", 0o4755)
    put(root, "private", "secret\n", 0o600, (1000, 1000))
    put(root, "name with blanks", "blanks\n")
    put(root, "N" * 200, "long\n")
    put(root, "M" * 200, "long and staying\n")
    put(root, ".hidden", "dot\n")
    put(root, "big", "0123456789abcdef" * 20000)
    os.mkdir(os.path.join(root, "sticky"))
    os.chmod(os.path.join(root, "sticky"), 0o1777)
    os.mkdir(os.path.join(root, "empty"))
    os.mkdir(os.path.join(root, "0700"))
    os.chmod(os.path.join(root, "0700"), 0o700)
    put(root, "0700/in", "in\n")
    os.symlink("plain", os.path.join(root, "symlink"))
    os.symlink("nowhere", os.path.join(root, "dangling"))
    os.symlink("dir", os.path.join(root, "linkdir"))
    os.symlink("plain", os.path.join(root, "link2file-too"))
    os.mkfifo(os.path.join(root, "fifo"), 0o640)
    os.mkfifo(os.path.join(root, "gone-fifo"), 0o640)
    settle(root)


def change(root):
    """The directed changes. Each line is one of the cases of formats.md; they work on every peer."""
    def at(name):
        return os.path.join(root, name)

    def write(name, text, how="w"):
        with open(at(name), how) as file:
            file.write(text)
    # What is deleted: a file, a directory with all below, a file in a directory, a name deep down, other types.
    os.unlink(at("gone-file"))
    shutil.rmtree(at("gone-dir"))
    os.unlink(at("dir/a"))
    os.unlink(at("dir/sub/c"))
    os.unlink(at("nested/1/2/3/one"))
    os.unlink(at("N" * 200))
    os.unlink(at("gone-fifo"))
    os.unlink(at("dangling"))
    os.unlink(at("emptied/only"))
    os.rmdir(at("empty"))
    # Deleted and made again: what was below must not come back.
    shutil.rmtree(at("again"))
    os.mkdir(at("again"))
    write("again/new", "new in again\n")
    os.mkdir(at("again/sub"))
    os.unlink(at("again-file"))
    write("again-file", "made again\n")
    # Twice over: delete, make, delete, make, delete.
    for _ in range(2):
        shutil.rmtree(at("twice"))
        os.mkdir(at("twice"))
    # A type in place of another.
    os.unlink(at("file2dir"))
    os.mkdir(at("file2dir"))
    write("file2dir/in", "in\n")
    shutil.rmtree(at("dir2file"))
    write("dir2file", "now a file\n")
    os.unlink(at("link2file"))
    os.symlink("plain", at("link2file"))
    os.unlink(at("link2file-too"))
    write("link2file-too", "was a symlink\n")
    # Renames onto deleted names.
    os.unlink(at("onto-gone-file"))
    os.rename(at("source-file"), at("onto-gone-file"))
    os.rename(at("rename-me"), at("renamed"))
    # Content and attributes.
    write("append", "appended\n", "a")
    os.truncate(at("truncate"), 3)
    write("overwrite", "all new\n")
    os.chmod(at("chmod"), 0o640)
    os.chown(at("chown"), 1000, 1000)
    os.chmod(at("kept"), 0o750)
    # New things, new things in old directories.
    write("new-file", "new\n")
    os.makedirs(at("new-dir/a/b"))
    write("new-dir/a/b/c", "c\n")
    write("dir/sub/new", "new in dir/sub\n")
    write("nested/1/2/5", "five\n")
    os.symlink("dir/b", at("new-link"))
    os.mkfifo(at("new-fifo"), 0o600)


def change_renames(root):
    """Directory renames that run into marks: not right in each peer, yet each peer's result must be read as it reads it."""
    def at(name):
        return os.path.join(root, name)

    def move(old, new):
        try:
            os.rename(at(old), at(new))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copytree(at(old), at(new), symlinks=True)
            shutil.rmtree(at(old))
    shutil.rmtree(at("onto-gone-dir"))
    os.mkdir(at("made"))
    put(root, "made/n", "n\n")
    move("made", "onto-gone-dir")
    move("moved-dir", "moved-to")
    # The deploy swap.
    os.mkdir(at("next"))
    put(root, "next/both", "next both\n")
    move("cur", "previous")
    move("next", "cur")


# --- listing ------------------------------------------------------------------------------------------------------------


def show(path):
    """A path as one printable word."""
    return path.encode("utf-8", "surrogateescape").decode("latin-1").encode("unicode_escape").decode().replace(" ", "\\x20")


def xattrs_of(full):
    """The user's and security's attributes that are content, not marks."""
    found = []
    try:
        names = os.listxattr(full, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise
    for name in sorted(names):
        if name.startswith(("user.", "security.capability", "system.posix_acl")):
            found.append(f"{name}={os.getxattr(full, name, follow_symlinks=False).hex()}")
    return found


def describe(full, options):
    """One listing line, without the path."""
    status = os.lstat(full)
    kind = stat.S_IFMT(status.st_mode)
    words = [{stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo",
              stat.S_IFSOCK: "sock", stat.S_IFCHR: "chr", stat.S_IFBLK: "blk"}[kind],
             f"{stat.S_IMODE(status.st_mode):04o}", f"{status.st_uid}:{status.st_gid}"]
    if kind == stat.S_IFREG:
        with open(full, "rb") as file:
            words += [str(status.st_size), hashlib.sha256(file.read()).hexdigest()[:16]]
    elif kind == stat.S_IFLNK:
        words.append("->" + show(os.readlink(full)))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        words.append(f"{os.major(status.st_rdev)},{os.minor(status.st_rdev)}")
    if "--nlink" in options and kind != stat.S_IFDIR:
        words.append(f"nlink={status.st_nlink}")
    if "--mtime" in options and kind == stat.S_IFREG:
        words.append(f"mtime={status.st_mtime_ns}")
    if "--xattr" in options:
        words += xattrs_of(full)
    return " ".join(words)


def list_tree(root, options):
    """All lines of a tree, by path, and what is wrong with it."""
    lines, wrong = {}, []

    def walk(path):
        full = os.path.join(root, path)
        with os.scandir(full) as entries:
            found = sorted(((e.name, e) for e in entries), key=lambda pair: pair[0])
        names = [name for name, _ in found]
        if len(names) != len(set(names)):
            wrong.append(f"listed twice in {show(path) or '.'}: {sorted(n for n in set(names) if names.count(n) > 1)}")
        for name, entry in found:
            below = os.path.join(path, name)
            try:
                lines[below] = describe(os.path.join(root, below), options)
                type_told = "dir" if entry.is_dir(follow_symlinks=False) else None
            except OSError as error:
                wrong.append(f"listed, but {errno.errorcode.get(error.errno, error)}: {show(below)}")
                continue
            if (type_told == "dir") != lines[below].startswith("dir"):
                wrong.append(f"d_type disagrees: {show(below)}")
            if lines[below].startswith("dir "):
                walk(below)
    lines["."] = describe(root, options)
    walk("")
    return lines, wrong


def through_link(path, lines):
    """Whether a symbolic link stands in the way, so that a look-up leads elsewhere."""
    parts = path.split("/")
    return any(lines.get("/".join(parts[:n]), "").startswith("link ") for n in range(1, len(parts)))


def probe(root, branch, lines):
    """Names of a branch that can be looked up though the listing lacks them."""
    wrong = []
    for base, dirs, files in os.walk(branch):
        relative = os.path.relpath(base, branch)
        if relative == ".":
            relative = ""
            dirs[:] = [d for d in dirs if d not in (".unionfs", ".unionfs-fuse")]
        for name in dirs + files:
            if name.startswith(".wh."):
                continue
            path = os.path.join(relative, name)
            if path in lines or through_link(path, lines):
                continue
            try:
                os.lstat(os.path.join(root, path))
                wrong.append(f"can be looked up, but is not listed: {show(path)}")
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    wrong.append(f"lookup gives {errno.errorcode.get(error.errno, error)}: {show(path)}")
    return wrong


def command_list(root, arguments):
    """Print a tree; exit status 1 when it contradicts itself."""
    options = [a for a in arguments if a.startswith("--")]
    branches = [arguments[i + 1] for i, a in enumerate(arguments) if a == "--probe"]
    lines, wrong = list_tree(root, options)
    for branch in branches:
        wrong += probe(root, branch, lines)
    for path in sorted(lines):
        if path != ".":
            print(show(path), lines[path])
    for text in wrong:
        print("WRONG", text)
    return 1 if wrong else 0


# --- random operations --------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d", "e", "f g", "h\udcff"]


def random_lower(root, seed, tries=60):
    """About 40 entries, three levels deep, over the few names that the operations use."""
    dice = random.Random(f"lower {seed}")
    for _ in range(tries):
        depth = dice.choice((1, 1, 2, 2, 3))
        path = os.path.join(*(dice.choice(NAMES) for _ in range(depth)))
        full = os.path.join(root, path)
        try:
            os.makedirs(os.path.dirname(full), exist_ok=True)
            kind = dice.random()
            if kind < 0.55:
                with open(full, "x") as file:
                    file.write(f"lower {show(path)} {dice.random()}\n" * dice.choice((0, 1, 50)))
                os.chmod(full, dice.choice((0o644, 0o600, 0o755, 0o640)))
            elif kind < 0.85:
                os.mkdir(full, dice.choice((0o755, 0o700, 0o1777)))
            elif kind < 0.95:
                os.symlink(dice.choice(NAMES), full)
            elif "--no-mkfifo" not in sys.argv:
                os.mkfifo(full)
        except OSError:
            continue
    settle(root)


def paths_of(root):
    """All paths of a tree below its root, sorted: what the next operation chooses from."""
    found = []
    for base, dirs, files in os.walk(root):
        relative = os.path.relpath(base, root)
        found += [name if relative == "." else os.path.join(relative, name) for name in dirs + files]
    return sorted(found)


def choose(dice, known):
    """One operation as (name, arguments); mostly on what is there, sometimes on what is not."""
    def some():
        if known and dice.random() < 0.85:
            return dice.choice(known)
        return new()

    def new():
        base = [""] + known
        return os.path.join(dice.choice(base), dice.choice(NAMES))
    name = dice.choice(("create", "create", "write", "append", "truncate", "unlink", "unlink", "rmtree", "rmdir", "mkdir",
                        "mkdir", "rename", "rename", "rename", "symlink", "chmod", "chown", "mkfifo", "remake", "link"))
    tag = f"{dice.random()}\n"
    if name in ("create", "mkdir", "mkfifo"):
        return name, (new() if dice.random() < 0.7 else some(), tag)
    if name == "rename":
        return name, (some(), new() if dice.random() < 0.6 else some())
    if name == "link":
        return name, (some(), new())
    if name == "symlink":
        return name, (new(), dice.choice(NAMES))
    if name == "chmod":
        return name, (some(), dice.choice((0o644, 0o600, 0o755, 0o4755)))
    if name == "chown":
        return name, (some(), dice.choice((0, 1000)))
    if name == "truncate":
        return name, (some(), dice.choice((0, 5, 5000)))
    return name, (some(), tag)


def is_real_dir(full):
    """A directory, not a symlink to one."""
    return os.path.isdir(full) and not os.path.islink(full)


def open_write(full, flags, text):
    """Write through one open that does not follow symlinks or wait for a FIFO's reader."""
    fd = os.open(full, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o644)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.write(fd, text.encode())
    finally:
        os.close(fd)


def act(root, name, arguments):
    """Do one operation; what comes back is "ok" or an errno's name."""
    full = os.path.join(root, arguments[0])
    other = arguments[1]
    try:
        if name == "create":
            open_write(full, os.O_CREAT | os.O_EXCL, other)
        elif name == "write":
            open_write(full, os.O_TRUNC, other)
        elif name == "append":
            open_write(full, os.O_APPEND, other)
        elif name == "truncate":
            if not os.path.isfile(full) or os.path.islink(full):
                return "skipped"
            os.truncate(full, other)
        elif name == "unlink":
            os.unlink(full)
        elif name == "rmdir":
            os.rmdir(full)
        elif name == "rmtree":
            if not is_real_dir(full):
                return "skipped"
            shutil.rmtree(full)
        elif name == "remake":
            if not is_real_dir(full):
                return "skipped"
            shutil.rmtree(full)
            os.mkdir(full)
            put(full, "again", other)
        elif name == "mkdir":
            os.mkdir(full)
        elif name == "rename":
            os.rename(full, os.path.join(root, other))
        elif name == "link":
            if is_real_dir(full):
                return "skipped"
            os.link(full, os.path.join(root, other), follow_symlinks=False)
        elif name == "symlink":
            os.symlink(other, full)
        elif name == "chmod":
            if os.path.islink(full):
                return "skipped"
            os.chmod(full, other)
        elif name == "chown":
            os.chown(full, other, other, follow_symlinks=False)
        elif name == "mkfifo":
            os.mkfifo(full)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "ok"


def command_random(root, seed, count, oracle):
    """Random operations; with an oracle, the first difference in a result ends the run."""
    dice = random.Random(f"operations {seed}")
    for number in range(count):
        name, arguments = choose(dice, paths_of(oracle or root))
        if f"--no-{name}" in sys.argv:
            continue
        result = act(root, name, arguments)
        words = " ".join(show(str(a)).strip("\\n") for a in arguments)
        print(f"{number:4} {name} {words}: {result}", flush=True)
        if oracle is None:
            continue
        if result == "EXDEV" and name == "rename" and is_real_dir(os.path.join(oracle, arguments[0])):
            continue
        expected = act(oracle, name, arguments)
        if expected != result:
            print(f"WRONG {name} {words}: {result}, on a plain filesystem {expected}")
            return 1
    return 0


def command_sequences(root, seed, count, length, oracle):
    """Many short sequences, each in a directory of its own; the first that differs from the oracle ends the run."""
    for number in range(count):
        name = f"s{number:04}"
        print(f"--- {name}", flush=True)
        status = command_random(os.path.join(root, name), f"{seed} {name}", length, oracle and os.path.join(oracle, name))
        if status != 0:
            return status
    return 0


def main():
    """Parse and call."""
    command, root = sys.argv[1], sys.argv[2]
    rest = [a for a in sys.argv[3:] if a not in ("--no-link", "--no-mkfifo")]
    os.umask(0o022)
    if command == "lower":
        make_lower(root)
    elif command == "random-lower":
        random_lower(root, rest[0])
    elif command == "sequences-lower":
        for number in range(int(rest[1])):
            os.mkdir(os.path.join(root, f"s{number:04}"))
            random_lower(os.path.join(root, f"s{number:04}"), f"{rest[0]} {number}", 18)
        settle(root)
    elif command == "sequences":
        return command_sequences(root, rest[0], int(rest[1]), int(rest[2]), rest[3] if len(rest) > 3 else None)
    elif command == "change":
        change(root)
    elif command == "change-renames":
        change_renames(root)
    elif command == "random":
        return command_random(root, rest[0], int(rest[1]), rest[2] if len(rest) > 2 else None)
    elif command == "list":
        return command_list(root, rest)
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


sys.exit(main())
