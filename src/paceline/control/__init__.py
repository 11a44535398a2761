"""How many tokens to draft: what a round costs, what it will win, and the choice. Arithmetic only, no model."""
