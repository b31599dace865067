"""What a policy may write: texts, calls and code that break a careless reader.

A reply is text in which the names of control tokens stand for the tokens, or token ids.
"""

import itertools
import json
import random
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs.messages import ToolSpec
from rl.chat.formats.nemotron import NEMOTRON_TOKENS

Ids = tuple[int, ...]
CONTROLS = [token.text for token in NEMOTRON_TOKENS]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LONG = 50_000
"""Characters of a reply that stands for all that are much too long."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and Nemotron's control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: id for id, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(CONTROLS)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = CHATML
    return fast


TOKENIZER = byte_tokenizer()

SHORT_TEXTS = (
    *(
        "",
        " ",
        "\n",
        "\0",
        "\0" * 50,
        "0",
        "-",
        "NaN",
        "-inf",
        "1e999",
        "1/0",
        "9**9**9**9",
        "-0.0",
        "½",
        "٣",
        "²",
        "①",
    ),
    *("True", "null", "None", "[]", "{}", '""', "\\boxed{}", "\\boxed{", "Answer:", "####", "A", "yes", "no", "left"),
    "\u202eabc\u202c \u200f\u061c",
    "e" + "\u0301" * 400,
    "\ufeff\ufffe\uffff\U0010ffff",
    "\r\r\n\x0b\x0c\x1c\x85\u2028\u2029",
    "<html><script>alert(1)</script>&lt;&#0;<!--",
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "&b;&b;">]><a>&b;</a>',
    "<answer>1</answer><answer>2",
    '{"a": 1, "a": 2, "a": NaN, "b": Infinity}',
    '{"a": "\\ud800", "\\udfff": 1e400}',
    '["\\ud83d", "\\ude00"]',
    "```json\n" + '{"a": ' * 200 + "1" + "}" * 200 + "\n```",
    "\\boxed{10^{10^{10}}} \\frac{1}{0} \\sqrt{-1} 2^{999999999} (99999!)!",
    "\\boxed{" + "\\frac{1}{" * 60 + "2" + "}" * 61,
    "The answer is 1,2,3,,4e5.6.7-8 % $ € 1_000 0x1F 1e-400",
    "f = lambda x: x\n```",
    "```python\n```",
)
LONG_TEXTS = (
    *(
        text * 10_000
        for text in ("[", "(", "{", '{"a":', "\\boxed{", "<answer>", "```\n", "- ", "\\frac{", "((1)+", "!")
    ),
    *(
        text * (LONG // len(text))
        for text in ("9", " ", "a ", "\n", "1,", ".", "*", "$", "\\", "1+", "é\u0301", "<", "#")
    ),
    *("a" * LONG + "!", " " * LONG + "x", "1" + " " * LONG + "2", "\\boxed{" + "9" * LONG + "}", '"' + "\\" * LONG),
    *("-" * LONG + "1", "A. " * (LONG // 3), "9^" * 20_000, "x=1;" * 10_000, "\t " * (LONG // 2), "a.\n\n" * 10_000),
    "[" * 5_000 + "]" * 5_000,
    '{"a":' * 5_000 + "1" + "}" * 5_000,
    json.dumps({str(number): number for number in range(5_000)}),
    "1" + "0" * 5_000,
    "\\boxed{" + "1+" * 20_000 + "1}",
)
VALUES = (
    *(
        "",
        " ",
        "null",
        "NaN",
        "-Infinity",
        "1e999",
        "1e308",
        "3.0",
        "3.7",
        "-1",
        "true",
        "False",
        "[]",
        "{}",
        '""',
        "\0",
    ),
    *("9" * 4_000, "9" * 5_000, "[" * 10_000, '{"a":' * 10_000, "[" * 60 + "]" * 60, "[" * 5_000 + "]" * 5_000),
    *('{"a": 1, "a": 2}', '"\\ud800"', '["\\ud83d\\ude00", "\\udc00"]', '{"\\ud800": [{"\\udfff": null}]}', "\u202e"),
    *('["a", 1, null]', "x" * LONG, json.dumps(list(range(20_000))), "2025-13-45", "../../etc/passwd", "<b>&amp;</b>"),
    *("1", "0", "Ann", "apple", "e" + "\u0301" * 400, "\r\n\x85\u2028", '[{"a": [{"a": {}}]}]', "{'a': 1}", "(1, 2)"),
)
CODE = (
    "print('x' * 5_000_000)",
    "import sys\nsys.stdout.buffer.write(bytes(range(256)))\nsys.stderr.write('\\ud800')",
    "import os\nos._exit(0)",
    "raise SystemExit('\\ud800')",
    "raise KeyboardInterrupt",
    "raise ValueError('\\ud800')",
    "raise ValueError('x' * 5_000_000)",
    "class Odd(Exception):\n    def __str__(self):\n        raise self\nraise Odd",
    "class Odd(BaseException):\n    def __repr__(self):\n        return 3\nraise Odd(1)",
    "raise type('N' * 100_000, (Exception,), {})('a\\nb')",
    "def again(n):\n    return again(n + 1)\nagain(0)",
    "return 1",
    "print('\\ud800', '\\udfff', chr(0), chr(0x202e))",
    "raise ExceptionGroup('many', [ValueError('\\ud800')] * 1000)",
    "import sys\nsys.setrecursionlimit(10**9)\neval('(' * 10**6)",
    "[].append",
    "é = '\0'",
    "\ud800",
    "del __builtins__, print",
    "import builtins\nbuiltins.isinstance = builtins.len = builtins.repr = None",
    "x = 'x' * 10**10",
    "import sys\nsys.exit = sys.stdout = sys.stderr = None\nprint(1)",
)
RETURNS = (
    *(
        "'\\ud800'",
        "10**5000",
        "-10**400",
        "float('nan')",
        "float('-inf')",
        "1j",
        "b'\\xff' * 1000",
        "lambda: 0",
        "...",
    ),
    *(
        "'x' * 5_000_000",
        "[[]] * 100_000",
        "{1: {2: {(3,): {4}}}}",
        "{float('nan'): 1}",
        "{'\\udfff': 1}",
        "f",
        "range(3)",
    ),
    *(
        "[x for x in iter(int, 1)]",
        "type('T', (int,), {'__eq__': lambda *_: True})(1)",
        "True",
        "type('S', (str,), {})('1')",
    ),
    "(lambda a: [a.append(a), a][1])([])",
    "__import__('functools').reduce(lambda a, _: [a], range(100_000), 0)",
    "__import__('os').getppid()",
    "open('/etc/passwd').read()",
)
ENDLESS = (
    "while True: pass",
    "import time\ntime.sleep(1000)",
    "while True: print('x')",
    "x = []\nwhile True: x.append(x[:])",
)


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def code_replies() -> list[str]:
    """Programs and functions `f` that misbehave, but end."""
    bodies = [*CODE, *(f"def f(x):\n    return {value}" for value in RETURNS)]
    inside = ["def f(x):\n    " + code.replace("\n", "\n    ") for code in CODE]
    return list(map(fenced, (*bodies, *inside)))


def call(name: str, arguments: Sequence[tuple[str, str]]) -> str:
    said = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments)
    return f"<tool_call>\n<function={name}>\n{said}</function>\n</tool_call>"


def calls_of(tools: Sequence[ToolSpec], rng: random.Random) -> Iterator[str]:
    """Calls of these tools with every value for every parameter, the other parameters drawn."""
    for tool in tools:
        properties = list(tool.parameters.get("properties", {}))
        for one, value in itertools.product(properties, VALUES):
            yield call(tool.name, [(key, value if key == one else rng.choice(VALUES)) for key in properties])
        for value in VALUES if len(properties) == 1 else ():
            yield call(tool.name, [(properties[0], value)])


def broken_calls(tools: Sequence[ToolSpec]) -> list[str]:
    """Calls that cannot be read or that no tool takes."""
    name = tools[0].name if tools else "run"
    keys = list(tools[0].parameters.get("properties", {})) if tools else ["a"]
    fine = call(name, [(key, "1") for key in keys])
    return [
        *(call(odd, []) for odd in ("", "a>b", "no_such_tool", "__init__", "reset", "x" * LONG, "\0", "\u202e", name)),
        call(name, [(keys[0] if keys else "a", "1")] * 2),
        call(name, [*((key, "1") for key in keys), ("extra", "2")]),
        call(name, [(f"p{number}", "1") for number in range(5_000)]),
        call(name, [("x" * LONG, "1"), ("__class__", "1"), ("self", "1")]),
        *(
            fine * 3,
            fine * 1_000,
            fine + "text after",
            "<tool_call>" * 5_000,
            "</tool_call>" * 5_000,
            fine[:-12],
            fine[12:],
        ),
        *(f"<tool_call>{fine}</tool_call>", fine.replace("</parameter>", ""), fine.replace("\n", ""), fine + "<think>"),
        *(
            "<tool_call></tool_call>",
            "<tool_call>{}</tool_call>",
            "<tool_response>\n1\n</tool_response>",
            f"</think>{fine}",
        ),
        f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>',
    ]


def random_text(rng: random.Random, length: int = 200) -> str:
    """Bytes decoded, or characters from anywhere."""
    if rng.random() < 0.5:
        return rng.randbytes(rng.randrange(length)).decode(errors="replace")
    parts = (*CONTROLS, *VALUES[:20], *"{}[]()\"'\\<>=$#*`\n 0123456789.,:-+/^_aAbB")
    return "".join(rng.choice(parts) for _ in range(rng.randrange(length)))


def random_ids(rng: random.Random, length: int = 100) -> Ids:
    """Token ids; half of them control tokens, the end of the turn left out."""
    vocabulary = TOKENIZER.get_vocab()
    controls = [vocabulary[text] for text in CONTROLS if vocabulary[text] != TOKENIZER.eos_token_id]
    return tuple(
        rng.choice(controls) if rng.random() < 0.5 else rng.randrange(256) for _ in range(rng.randrange(length))
    )


def spoiled(text: str, rng: random.Random) -> str:
    """The text cut somewhere, or with one character changed, left out or doubled."""
    place = rng.randrange(len(text) + 1)
    other = rng.choice(("", "\0", "9", "}", "<", "\u0301", text[place : place + 1] * 2, random_text(rng, 5)))
    return text[:place] if rng.random() < 0.5 else text[:place] + other + text[place + 1 :]
