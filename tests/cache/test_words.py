"""Fields of words."""

from __future__ import annotations

import pytest
import torch

from draftwood.cache.words import pack, unpack


@pytest.mark.parametrize("width", [32, 64, 96, 256])
@pytest.mark.parametrize(("bits", "fields"), [(4, 8), (2, 16), (1, 16), (1, 32)])
def test_a_word_has_neighbouring_values(width: int, bits: int, fields: int) -> None:
    generator = torch.Generator().manual_seed(width)
    codes = torch.randint(0, 1 << bits, (3, width), generator=generator, dtype=torch.int32)
    places = bits * torch.randperm(fields, generator=generator, dtype=torch.int32)
    words = pack(codes, places)
    assert words.shape == (3, width // fields) and words.dtype == torch.int32
    for value in range(width):
        word, field = divmod(value, fields)
        assert torch.equal(words[:, word] >> places[field] & (1 << bits) - 1, codes[:, value])
    assert torch.equal(unpack(words, bits, places), codes)
    if bits * fields == 16:
        assert torch.equal(unpack(words.to(torch.int16), bits, places), codes)
