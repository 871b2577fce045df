from __future__ import annotations

from kbridge.flow.histogram import Histogram
from kbridge.metrics.samples import OTHER, Samples


def test_equal_keys_are_added_up() -> None:
    samples, histogram = Samples(), Histogram((1.0,))
    histogram.observe(0.5)
    for _ in range(2):
        samples.add(3, "a", "x")
        samples.add_histogram(histogram, "h")
    samples.add(1, "a", "y")
    assert samples.values == {("a", "x"): 6, ("a", "y"): 1}
    assert samples.histograms["h",].counts == [2, 0]
    assert histogram.counts == [1, 0]


def test_the_number_of_kernelspecs_is_bounded() -> None:
    samples = Samples()
    names = [f"attached-{number}" for number in range(60)]
    labels = {samples.kernelspec(name) for name in names}
    assert len(labels) == 51
    assert OTHER in labels
    assert samples.kernelspec("attached-0") == "attached-0", "a known name keeps its label"
