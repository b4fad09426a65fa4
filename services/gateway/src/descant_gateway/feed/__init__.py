"""Keeps the catalogue in memory equal to the database and to the catalogue file."""
