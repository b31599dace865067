"""What runs in a worker process of `rewards.math_answer`: math-verify, one answer a line, in its main thread.

Run by path as `python -P math_worker.py`; it must not import anything of ours.
"""

import json
import sys

from math_verify import parse, verify

PARSE_DEADLINE_S = 3


def correct(answer: str, expected: str) -> bool:
    gold = parse(f"${expected}$", parsing_timeout=PARSE_DEADLINE_S)
    given = parse(f"${answer}$", parsing_timeout=PARSE_DEADLINE_S)
    return bool(verify(gold, given, timeout_seconds=PARSE_DEADLINE_S))


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        answer, expected = json.loads(line)
        try:
            verdict = correct(answer, expected)
        except Exception:  # whatever the parser makes of it, it is not the expected value
            verdict = False
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
