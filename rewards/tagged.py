"""What stands between `<answer>` and `</answer>`?"""

import re

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def tagged_answer(text: str) -> str | None:
    """The content of the text's last answer tags, without blanks around it; None where there are none."""
    found = ANSWER.findall(text)
    return found[-1].strip() if found else None
