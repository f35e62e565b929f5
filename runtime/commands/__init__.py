"""What each command does; ``cli.py`` has their names and what is common to all."""
