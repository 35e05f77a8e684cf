"""How a stage's trials are run: the conductor that follows them, and the launchers that start them."""
