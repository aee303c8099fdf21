"""Other people's trainers, driven by our recipes: the same tasks, rollouts, guidance and rewards."""
