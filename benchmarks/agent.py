"""Does an agent survive? A search over loopback whose agent is killed in the middle, and 1,000 hostile requests.

    python benchmarks/agent.py            # about 10 minutes on two cores

Runs the slow tests of the agent, which start real processes, and says which held.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

CHECKS = {
    "search over loopback, agent killed by kill -9 and started again": "test_remote_search.py",
    "1,000 hostile requests, five parts of 200": "test_hostile.py",
}


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    root = Path(__file__).resolve().parents[1]
    failed = 0
    for what, file in CHECKS.items():
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slow", "-p", "no:cacheprovider", str(root / "tests" / "agent" / file)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
        print(f"{'held' if done.returncode == 0 else 'FAILED'}: {what} ({summary})", flush=True)
        if done.returncode:
            failed += 1
            print(done.stdout[-3000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
