"""The command line `podium`: `main` and a module a command group. Nothing here imports a framework at module level."""
