"""Reads LMDB files through, in a process of its own: a damaged file may crash the reader.

Run as a program. Its arguments are folders of environments, each with "r" (complete) or "w" (a
process writes to it) in front. For each it prints "ok", "damaged" or "unusable" before the folder.
It imports nothing but `lmdb`, since it runs before each use of a file.
"""

import os
import sys


def read_through(path: str, *, written: bool) -> str:
    """Finds all entries of an environment, and returns "ok", "damaged" or "unusable"."""
    import lmdb

    harm = lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError
    try:
        environment = lmdb.open(path, readonly=True, lock=written, create=False, max_spare_txns=0)
        pages = environment.info()["last_pgno"] + 1
        size = os.path.getsize(os.path.join(path, "data.mdb"))
        if size < pages * environment.stat()["psize"]:
            return "damaged"
        with environment.begin(buffers=True) as reader:
            for key, value in reader.cursor():
                bytes(key), value[0], value[-1]
        environment.close()
    except (*harm, IndexError, UnicodeError):
        return "damaged"
    except Exception:
        return "unusable"  # no permission, no memory, or made by another version of LMDB
    return "ok"


def main(arguments: list[str]) -> None:
    """Prints what is found of each environment, as soon as it is."""
    for argument in arguments:
        print(read_through(argument[1:], written=argument[0] == "w"), argument[1:], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
