"""What OpenRLHF imports to pack rows."""

from flash_attn import missing

index_first_axis = pad_input = rearrange = unpad_input = missing
