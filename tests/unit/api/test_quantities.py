"""Quantities of bytes, both ways."""

import pytest

from everstep_operator.api.quantities import format_bytes, quantity_bytes


@pytest.mark.parametrize(
    ("quantity", "expected"), [("0", 0), ("4Gi", 4 << 30), ("1.5Ki", 1536), ("2M", 2_000_000), ("0.0001k", 1)]
)
def test_quantities(quantity: str, expected: int) -> None:
    assert quantity_bytes(quantity) == expected


@pytest.mark.parametrize("quantity", ["", "4 Gi", "4gi", "-1", "1e3", "Gi", "1.Gi"])
def test_others_are_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity_bytes(quantity)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1288490189, "1.2 GiB"),
        (37 << 20, "37 MiB"),
        (1048575, "1.0 MiB"),
        (5 << 60, "5120 PiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text
