"""The command line. `main` knows the options (typer); every other module does the work of one command."""
