"""Pytest's reports in JUnit format -> the ten slowest tests, and how many tests there were.

python -m tests.slowest REPORT.xml …
"""

import sys
from xml.etree import ElementTree

_SHOWN = 10


def main(reports: list[str]) -> None:
    cases = [case for report in reports for case in ElementTree.parse(report).iter("testcase")]
    cases.sort(key=lambda case: -float(case.get("time", "0")))
    print(f"the {_SHOWN} slowest of {len(cases)} tests:")
    for case in cases[:_SHOWN]:
        print(f"{float(case.get('time', '0')):7.1f} s  {case.get('classname')}::{case.get('name')}")


if __name__ == "__main__":
    main(sys.argv[1:])
