"""Fields of words."""

from __future__ import annotations

import pytest
import torch

from draftwood.cache.words import pack, unpack


@pytest.mark.parametrize("width", [32, 64, 96, 256])
@pytest.mark.parametrize(("bits", "fields"), [(4, 8), (2, 16), (1, 16), (1, 32)])
def test_a_field_over_all_words_is_a_run_of_values(width: int, bits: int, fields: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, width), generator=torch.Generator().manual_seed(width), dtype=torch.int32)
    words = pack(codes, bits, fields)
    assert words.shape == (3, width // fields)
    for value in range(width):
        field, word = divmod(value, width // fields)
        assert torch.equal(words[:, word] >> bits * field & (1 << bits) - 1, codes[:, value])
    assert torch.equal(unpack(words, bits, fields), codes)
    if bits * fields == 16:
        assert torch.equal(unpack(words.to(torch.int16), bits, fields), codes)
