"""The tool classes of BFCL's multi-turn rows, written anew from their documentation."""
