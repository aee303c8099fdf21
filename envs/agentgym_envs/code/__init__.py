"""Function-level programming tasks, solved over several turns."""
