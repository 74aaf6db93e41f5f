"""Takes a run's model to where it is used: in five formats, each checked and described."""
