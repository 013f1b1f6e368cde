"""Before the first stage: every name, setting and option of a call of run.sh. All errors are reported at once."""

from __future__ import annotations

import sys

from distill.recipe.checks import check
from distill.recipe.options import recipe_parser


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--stage", type=int, default=0, help="first stage of the call")
    parser.add_argument("--stop-stage", type=int, default=13, help="its last one")
    lines = check(parser.parse_args())
    for line in lines:
        print(f"run.sh: {line}", file=sys.stderr)
    sys.exit(2 if lines else 0)


if __name__ == "__main__":
    main()
