"""How much memory a corpus takes: no more than a small one."""

import pytest

from tests.benchmarks.corpus import compared

MORE_MB = 30  # than a corpus of 10 MB; the text alone of one of 50 MB is 40 MB more


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1200)
def test_a_large_corpus_takes_the_memory_of_a_small_one(tmp_path):
    found = compared(50_000_000, tmp_path)
    assert found["large"]["peak_rss_mb"] < found["small"]["peak_rss_mb"] + MORE_MB
    assert found["large, kept"]["peak_rss_mb"] < found["small"]["peak_rss_mb"] + MORE_MB
