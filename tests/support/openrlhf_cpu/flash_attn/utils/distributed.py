"""What OpenRLHF imports for ring attention."""

from flash_attn import missing  # type: ignore[import-not-found]

all_gather = missing
