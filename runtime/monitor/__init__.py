"""Watching a run: its history, the picture that events make of it, the views that show it. No torch, no hivemind."""
