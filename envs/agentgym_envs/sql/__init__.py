"""Questions to databases: text-to-SQL, and investigations through logs, over several turns."""
