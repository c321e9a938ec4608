"""The long form of the fault tests, for the record in docs/reliability.md.

python -m tests.faults kills [--resume] [--only SEED]   rounds of kills from the fixed list of seeds
python -m tests.faults detection                        how soon a video runs elsewhere, with default settings
python -m tests.faults.soak --minutes 60                hours of traffic, and whether anything grows
python -m tests.faults report                           writes docs/reliability.md from what these measured
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.faults import campaign, detection, report
from tests.worker import tiny


def main() -> None:
    """Command line of this package."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    kills = commands.add_parser("kills")
    kills.add_argument("--only", type=int, action="append", help="run this seed alone; may be repeated")
    kills.add_argument("--first", type=int, help="run so many of the list")
    kills.add_argument(
        "--resume", action="store_true", help="leave out seeds that are in the results already"
    )
    measured = commands.add_parser("detection")
    measured.add_argument("--kills", type=int, default=8)
    measured.add_argument("--terms", type=int, default=20)
    commands.add_parser("report")
    arguments = parser.parse_args()
    if arguments.command == "kills":
        seeds = arguments.only or campaign.SEEDS[: arguments.first]
        print(campaign.totals(campaign.run(seeds, resume=arguments.resume)["rounds"]))
    elif arguments.command == "detection":
        with tempfile.TemporaryDirectory(prefix="longtake-faults-") as folder:
            model = tiny.save(Path(folder) / "model")
            found = detection.measure(
                Path(folder) / "service", model, kills=arguments.kills, terms=arguments.terms
            )
        campaign.save({**campaign.load(), "detection": found})
        print(found)
    report.write()


if __name__ == "__main__":
    main()
