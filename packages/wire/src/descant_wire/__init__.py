"""The OpenAI wire format: request and response structs, server-sent events, errors. Imports nothing of ours.

Requests are decoded by `decoding.decode_request`, which turns every kind of bad input into an `errors.ApiError`
that names the field. What a field of the OpenAI API comes to is written beside it, in the request's struct.
"""
