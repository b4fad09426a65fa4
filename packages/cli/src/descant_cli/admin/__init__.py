"""`descant admin`: the gateway's admin API from a shell."""

from descant_cli.admin.group import admin

__all__ = ["admin"]
