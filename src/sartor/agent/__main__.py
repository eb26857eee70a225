from __future__ import annotations

import sys

from sartor.agent import main
from sartor.errors import UserError

if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"sartor: {error}.", file=sys.stderr)
        sys.exit(2)
