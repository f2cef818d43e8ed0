"""What a job may be told of compression, read without torch."""

import subprocess
import sys

import pytest

from distroml.planner.compression import UnknownScheme, read_wish


@pytest.mark.parametrize(
    ("text", "wish"), [("auto", "auto"), (" AUTO ", "auto"), ("INT8", "int8"), ("topk:1e-2+bf16", "topk:0.01+bf16")]
)
def test_a_wish_is_auto_or_a_scheme_in_its_one_spelling(text, wish):
    assert read_wish(text) == wish


@pytest.mark.parametrize("text", ["automatic", "", "auto:1", "int8:4"])
def test_other_texts_are_refused(text):
    with pytest.raises(UnknownScheme, match="write "):
        read_wish(text)


def test_the_grammar_is_read_without_torch():
    code = "import sys, distroml.planner.compression; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
