"""OpenRLHF trains a recipe: its Ray workers, DeepSpeed and vLLM; our environments, tokens, guidance and rewards."""
