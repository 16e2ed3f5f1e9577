"""Who may attend, said of coordinates.

A mask is a value: `Causal`, `Windows`, `Padding`, `Segments` and `Pairs`, combined with `&`. True always means
*may take part*; every other published sense has a constructor that is named after it. A row that may attend to
nothing gives zeros and finite gradients. Prefix tokens see all and are seen by all, under windows too; under
`Causal` they come first: all see them, and they see only the prefix.

A call binds its mask once (`bound`: checked against the grids, laid out by token). The planner reads
`Structure.of(mask)`, which is static; kernels read `pairs(queries, keys)`, the block of any tokens.
`cut(queries, keys)` is the mask of a shard.
"""

from locant.masks.causal import Causal
from locant.masks.mask import Every, Mask, check_mask
from locant.masks.padding import Padding
from locant.masks.pairs import Pairs
from locant.masks.segments import Segments
from locant.masks.structure import Structure
from locant.masks.windows import Windows

__all__ = ["Causal", "Every", "Mask", "Padding", "Pairs", "Segments", "Structure", "Windows", "check_mask"]
