"""Model cards, provenance of runs, and pushes to the Hub."""
