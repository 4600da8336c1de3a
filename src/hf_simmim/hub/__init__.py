"""Model cards, where things come from, and pushes."""
