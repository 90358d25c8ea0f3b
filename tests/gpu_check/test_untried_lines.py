"""Each line of the package that asks for a GPU stands in docs/gpu.md, with how it was tried."""

import re
from pathlib import Path

import pytest

import imixer
from imixer.gpu_check.checks import PROMISES

SOURCE = Path(imixer.__file__).parent
PAGE = SOURCE.parents[1] / "docs" / "gpu.md"
CHECK = "gpu_check"  # which is itself what tries
ASKS = re.compile(
    r"torch\.cuda\b|\bis_cuda\b|\.type [!=]= \"(cuda|cpu)\"|\.type in \(|nccl|non_blocking|pin_memory|"
    r"cudnn|set_float32_matmul|get_device_module|fused=fused|channels_last\)"
)

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="needs a checkout")


def lines_in_the_source():
    for file in sorted(SOURCE.rglob("*.py")):
        if CHECK in file.parts:
            continue
        for line in file.read_text().splitlines():
            code = line.partition("  # ")[0].strip()
            if ASKS.search(code) and not code.startswith("#"):
                yield file.relative_to(SOURCE).as_posix(), code


def rows_of_the_page():
    for row in re.findall(r"^\| `(.+?\.py)` \| `(.+?)` \| (.+?) \|$", PAGE.read_text(), flags=re.MULTILINE):
        yield row[0], row[1].replace(r"\|", "|"), row[2]


def test_the_page_lists_each_line_that_asks_for_a_gpu_and_no_other():
    assert sorted(set(lines_in_the_source())) == sorted((file, code) for file, code, _ in rows_of_the_page())


def test_what_the_page_says_of_each_is_there():
    names = {each.name for each in PROMISES}
    for _, code, how in rows_of_the_page():
        assert how, code
        for promise in re.findall(r"\"(.+?)\"", how):
            assert any(name.startswith(promise) for name in names), promise
        for test in re.findall(r"`(tests/.+?)`", how):
            file, _, name = test.partition("::")
            assert f"def {name}" in (PAGE.parents[1] / file).read_text(), test
