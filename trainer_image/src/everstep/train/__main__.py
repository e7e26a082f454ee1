"""`torchrun -m everstep.train [--config FILE] [--field value …]`."""

from __future__ import annotations

import sys

from everstep import exits
from everstep.checkpoint import termination
from everstep.errors import InvalidOperationError
from everstep.train.config import read_config


def main() -> None:
    termination.install()
    try:
        config = read_config(sys.argv[1:])
        from everstep.train.recipe import run  # torch comes in only when the configuration stands

        run(config)
    except InvalidOperationError as error:  # another start would end in the same way
        print(f"error: {error}", file=sys.stderr, flush=True)
        termination.write_record(termination.describe(error, exits.MISFIT))
        raise SystemExit(exits.MISFIT) from None


if __name__ == "__main__":
    main()
