"""Tasks from the history of real repositories: commits whose tests fail before and pass after."""
