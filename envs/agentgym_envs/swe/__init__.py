"""Software engineering: mend a repository with a shell and an editor; its own tests decide."""
