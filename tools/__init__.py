"""What agents are offered: typed functions, in the order of the contract. Their docstrings are what the agent reads."""
