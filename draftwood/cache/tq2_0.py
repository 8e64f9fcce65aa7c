"""KV type tq2_0: two bits a value, and a float16 norm for each head vector."""

from __future__ import annotations

from draftwood.cache.sphere import SpherePlane


class Plane(SpherePlane):
    """Rows as `SpherePlane` keeps them."""

    bits = 2
