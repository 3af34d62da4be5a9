"""python benchmarks/zoo [--only WORD ...] [--sample] [--part 1/4] [--output FILE.json]

Prints a line for each model. The exit status is 1 if a check fails. A process runs one backend.
With `--part`, several processes share the work, each with its own file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras

from zoo import applications, hub, shapes
from zoo.check import check
from zoo.member import Member, Zoo


def members() -> list[Member]:
    """Returns all members that can be built on the current backend."""
    zoo = Zoo()
    for room in (shapes, applications, hub):
        room.add_to(zoo)
    backend = keras.backend.backend()
    return [member for member in zoo.members if not member.backends or backend in member.backends]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/zoo", description=__doc__)
    parser.add_argument("--only", nargs="+", help="members whose name has one of these words")
    parser.add_argument("--sample", action="store_true", help="those that the tests run")
    parser.add_argument("--part", default="1/1", help="which of how many parts of the models")
    parser.add_argument("--output", help="a file for the table, as JSON")
    args = parser.parse_args()
    chosen = [m for m in members() if m.sample or not args.sample]
    chosen = [m for m in chosen if not args.only or any(word in m.name for word in args.only)]
    part, parts = map(int, args.part.split("/"))
    chosen = chosen[part - 1 :: parts]
    rows = []
    for member in chosen:
        rows.append(row := check(member))
        wrong = "; ".join(row["wrong"])
        print(f"{'WRONG' if wrong else 'ok':<6}{row['seconds']:6.1f} s  {member.name}  {wrong}")
        sys.stdout.flush()
        if args.output:
            table = {"keras": keras.__version__, "backend": keras.backend.backend(), "rows": rows}
            Path(args.output).write_text(json.dumps(table, indent=1) + "\n")
    print(f"{sum(not row['wrong'] for row in rows)} of {len(rows)} as they should be")
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
