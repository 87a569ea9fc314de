"""Environments for agents: Gymnasium and user-defined ones, stepped in parallel, recorded and rendered to video."""
