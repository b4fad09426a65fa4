"""Who is calling and what they may do: keys, scopes, roles, sign-in."""
