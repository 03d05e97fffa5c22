"""Replay seeds of the simulation: ``python -m tests.simulation 17``, ``… 0-199``, ``--trace`` prints every event."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.world import run


def main() -> int:
    """Run the seeds given; 1 where anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", nargs="+", help="a seed, or first-last")
    parser.add_argument("--trace", action="store_true", help="print every event")
    arguments = parser.parse_args()
    bad, count, events, began_s = [], 0, 0, time.perf_counter()
    for text in arguments.seeds:
        first, _, last = text.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            outcome = run(seed, keep=arguments.trace)
            count, events = count + 1, events + outcome.events
            for line in outcome.log:
                print(line)
            if outcome.violations:
                bad.append(seed)
                for line in outcome.violations:
                    print(f"seed {seed}: {line}")
            if arguments.trace or last == "":
                print(f"seed {seed}: {outcome.events} events, {outcome.virtual_s:.1f} virtual s,", end=" ")
                print(f"{outcome.orders} orders, {outcome.fills} fills, {outcome.crashes} crashes,", end=" ")
                print(f"trace {outcome.trace}")
    took_s = time.perf_counter() - began_s
    print(f"{count} seeds in {took_s:.1f} s, {events} events, {len(bad)} with violations {bad[:20]}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
