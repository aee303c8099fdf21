"""Work in a terminal: task folders of Harbor and terminal-bench, and AgentBench's operating-system questions."""
