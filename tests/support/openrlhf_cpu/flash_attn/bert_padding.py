"""What OpenRLHF imports to pack rows."""

from flash_attn import missing  # type: ignore[import-not-found]

index_first_axis = pad_input = rearrange = unpad_input = missing
