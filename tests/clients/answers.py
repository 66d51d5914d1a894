"""What a union says while a branch cannot say anything: answers.py UNION [NAME...] prints one line an operation: the errno, or what
was answered. Nothing it does would change a thing if it were refused."""

import errno
import os
import sys

union, *names = sys.argv[1:]


def answer(what, call, *args):
    try:
        said = call(*args)
    except OSError as error:
        said = errno.errorcode.get(error.errno, error.errno)
    print(what, said, flush=True)


for name in names:
    path = f"{union}/{name}"
    answer(f"stat {name}", lambda: "there" if os.lstat(path) else "")
    answer(f"access {name}", lambda: os.access(path, os.R_OK) and "there" or "not accessible")
    answer(f"read {name}", lambda: f"{len(open(path, 'rb').read(10))} bytes")
    answer(f"create {name}", lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)) or "made")
    answer(f"mkdir {name}", lambda: os.mkdir(path) or "made")
    answer(f"readdir {name}", lambda: f"{len(os.listdir(path))} names")
answer("readdir .", lambda: f"{len(os.listdir(union))} names")
