"""What a union says while a branch can say nothing.

answers.py UNION NAME...: NAMEs are there, as it was before. Prints each answer that is wrong, and ends with status 1 if there is one: a
name that looks absent, something that could be made, a listing that lacks one. What is known without the branch may be told. `NAME!` is one that
was never there: it may not look absent either.
"""

import errno
import os
import sys

union, *names = sys.argv[1:]
SICK = ("ENOTCONN", "EIO", "EROFS", "EBADFD", "ECONNABORTED", "ESTALE")
wrong = 0
seen = set()


def answer(what, fine, call, *args):
    global wrong
    try:
        call(*args)
        said = "OK"
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error.errno))
    seen.add(said)
    if said not in SICK + fine:
        wrong += 1
        print(f"{what}: {said}")


def read(path):
    with open(path, "rb") as file:
        file.read(10)


def list_all(path):
    """What was known before may be told, but all of it."""
    shown = os.listdir(path)
    at = os.path.relpath(path, union)
    for name in names:
        if os.path.dirname(name) == ("" if at == "." else at) and not name.endswith("!"):
            assert os.path.basename(name) in shown, f"{name} is not listed in {path}"


def create(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


for name in names:
    there = not name.endswith("!")
    path = f"{union}/{name.rstrip('!')}"
    answer(f"stat {name}", ("OK",) if there else (), os.lstat, path)
    answer(f"read {name}", ("EISDIR",) if there else (), read, path)
    answer(f"create {name}", ("EEXIST",) if there else (), create, path)
    answer(f"mkdir {name}", ("EEXIST",) if there else (), os.mkdir, path)
    answer(f"list {name}", ("ENOTDIR", "OK") if there else (), list_all, path)
    answer(f"remove {name}", ("EISDIR",) if there else (), os.unlink, path)
answer("list all", ("OK",), list_all, union)
print("answers:", *sorted(seen))
sys.exit(wrong > 0)
