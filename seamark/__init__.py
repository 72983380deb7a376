"""What a person sees of Seamark: commands, status and progress."""

__version__ = "0.1.0.dev0"
