"""A request carried to a backend and the reply back, to another one where the first does not answer."""
