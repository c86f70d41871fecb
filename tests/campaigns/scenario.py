"""`python -m tests.campaigns.scenario S-7`: one scenario row of docs/requirements.md, end to end."""

import subprocess
import sys
from typing import Final

ROWS: Final = {
    "S-7": ("tests/system/test_confserver_homecoming.py", "tests/system/test_control_verbs.py"),
}


def main() -> int:
    row = sys.argv[1] if len(sys.argv) == 2 else ""
    if row not in ROWS:
        print(f"no scenario row {row!r} can be run yet; there are: {', '.join(ROWS)}", file=sys.stderr)
        print(f"scenario {row}: 0 of 1")
        return 2
    done = (
        subprocess.run([sys.executable, "-m", "pytest", "-q", *ROWS[row]], stdout=sys.stderr).returncode == 0
    )
    print(f"scenario {row}: {int(done)} of 1")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
