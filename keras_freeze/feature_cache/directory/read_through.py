"""Reads LMDB files through, in a process of its own: a damaged file may crash the reader.

Run as a program. Its arguments are folders of environments, each with "r" (complete) or "w" (a
process writes to it) in front. It prints "begin", and for each environment in turn "ok", "damaged"
or "unusable". It imports nothing but `lmdb`, since it runs before each use of a file.
"""

import os
import sys

import lmdb

HARM = lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError
MAP, LEAST = 1 << 34, 1 << 24  # as in `environments`


def read_through(path: bytes, *, written: bool) -> str:
    """Finds all entries of an environment, and returns "ok", "damaged" or "unusable"."""
    size = MAP if written else LEAST
    try:
        environment = lmdb.open(
            path, map_size=size, readonly=True, lock=written, create=False, max_spare_txns=0
        )
        pages = environment.info()["last_pgno"] + 1
        if os.path.getsize(os.path.join(path, b"data.mdb")) < pages * environment.stat()["psize"]:
            return "damaged"
        with environment.begin(buffers=True) as reader:
            for key, value in reader.cursor():
                bytes(key), value[0], value[-1]
        environment.close()
    except (*HARM, IndexError):
        return "damaged"
    except Exception:
        return "unusable"  # no permission, no memory, or made by another version of LMDB
    return "ok"


def main(arguments: list[str]) -> None:
    """Prints what is found of each environment, as soon as it is."""
    print("begin", flush=True)
    for argument in arguments:
        print(read_through(os.fsencode(argument[1:]), written=argument[0] == "w"), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
