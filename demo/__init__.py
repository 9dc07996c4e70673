"""The demo that `make run` shows, and the picture sheet of `make demo-sheet`."""
